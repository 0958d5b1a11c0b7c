"""What README says is what works."""

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from support.server_process import NEURONA_SERVE, free_addresses

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_its_python_runs_against_the_demos_models(demo, serve):
    repository, _ = demo
    server = serve(repository)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "127.0.0.1:8001" in code
    code = code.replace("127.0.0.1:8001", server.address)
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, first, second, forecast = done.stdout.splitlines()
    assert first == second
    assert first.startswith(f"['{one}: ")
    assert re.fullmatch(r"-?\d+ sunspots.*", forecast)


def test_its_first_screen_is_what_a_new_user_sees(tmp_path):
    iris = load_iris()
    model = LogisticRegression(max_iter=300).fit(
        iris.data.astype(np.float32), iris.target_names[iris.target]
    )
    (tmp_path / "iris.onnx").write_bytes(
        to_onnx(model, iris.data[:1].astype(np.float32)).SerializeToString()
    )
    (printed,) = re.findall(r"```text\n(Serving .*?)```", README, re.DOTALL)
    assert "\n    neurona-serve iris.onnx\n" in README
    addresses = free_addresses(3)
    flags = ("--http-address", "--address", "--metrics-address")
    for port, address in zip((8000, 8001, 8002), addresses, strict=True):
        printed = printed.replace(f"127.0.0.1:{port}", address)
    command = [NEURONA_SERVE, "iris.onnx"]
    for flag, address in zip(flags, addresses, strict=True):
        command += [flag, address]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            lines = [process.stdout.readline() for _ in printed.splitlines()]
            assert "".join(lines) == printed
            answer = subprocess.run(  # noqa: S602  as a person pastes it
                lines[-1], shell=True, check=False, capture_output=True, text=True
            )
            outputs = json.loads(answer.stdout)["outputs"]
            expected = model.predict([[0.1, 0.2, 0.3, 0.4]])[0]
            assert [expected] in [output["data"] for output in outputs]
            with urllib.request.urlopen(f"http://{addresses[0]}/") as page:
                assert page.headers.get_content_type() == "text/html"
        finally:
            process.kill()


def test_its_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", README)) - {"any"}
    assert {"demo", "test", "serve"} <= targets
    for target in targets:
        assert re.search(rf"(?m)^{target}:", makefile), f"README says make {target}"
    for folder in re.findall(r"(?m)^\| `([a-z/]+)/` \|", README):
        assert (ROOT / folder).is_dir(), f"README says there is a folder {folder}"
