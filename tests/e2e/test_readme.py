"""What README says is what works."""

import re
import subprocess
import sys
from pathlib import Path

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


def test_its_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"\bmake ([a-z-]+)", README)) - {"any"}
    assert {"demo", "test", "serve"} <= targets
    for target in targets:
        assert re.search(rf"(?m)^{target}:", makefile), f"README says make {target}"
    for folder in re.findall(r"(?m)^\| `([a-z/]+)/` \|", README):
        assert (ROOT / folder).is_dir(), f"README says there is a folder {folder}"
