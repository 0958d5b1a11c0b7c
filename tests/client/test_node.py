"""client/node: its own tests, and its generated code. Skipped without npm; see `node_modules`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import onnx_models

NODE = Path(__file__).parents[2] / "client" / "node"


def make_environment(tmp_path):
    root, small = tmp_path / "repository", tmp_path / "small"
    for folder in (root, small):
        onnx_models.save_classifier(folder / "classifier" / "1" / "model.onnx")
    onnx_models.save_classifier(root / "classifier" / "2" / "model.onnx", offset=1.0)
    onnx_models.save_regressor(root / "regressor" / "1" / "model.onnx")
    onnx_models.save_slow(root / "slow" / "1" / "model.onnx")
    onnx_models.save_echoes(root)
    serve = Path(sys.executable).with_name("neurona-serve")
    variables = {
        "NODE_TEST_REPOSITORY": str(root),
        "NODE_TEST_SMALL_REPOSITORY": str(small),
        "NODE_TEST_SERVE": str(serve),
    }
    return os.environ | variables


def test_the_tests_of_the_package_pass(node_package, tmp_path):
    tests = [str(path) for path in (node_package / "dist" / "test").glob("*.test.js")]
    done = subprocess.run(
        [shutil.which("node"), "--test", "--test-reporter=tap", *tests],
        cwd=node_package,
        env=make_environment(tmp_path),
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(?m)^# pass (\d+)$", done.stdout)
    assert passed, done.stdout[-2000:]
    assert int(passed[1]) >= 20


def test_the_generated_code_is_up_to_date(node_modules, tmp_path):
    variables = {**os.environ, "PYTHON": sys.executable, "MODULES": str(node_modules)}
    subprocess.run(["/bin/sh", NODE / "generate.sh", tmp_path], env=variables, check=True)
    for generated in tmp_path.iterdir():
        committed = NODE / "src" / "generated" / generated.name
        if committed.read_text() != generated.read_text():
            pytest.fail(f"{committed.relative_to(NODE)} is stale: run npm run generate")
    assert {path.name for path in tmp_path.iterdir()} == {"health.ts", "prediction.ts"}


def test_the_lock_file_names_only_the_public_registry():
    packages = json.loads((NODE / "package-lock.json").read_text())["packages"]
    urls = [one["resolved"] for one in packages.values() if "resolved" in one]
    assert all(url.startswith("https://registry.npmjs.org/") for url in urls)
    assert all("integrity" in one for name, one in packages.items() if name)
