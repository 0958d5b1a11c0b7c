"""client/node: its own tests against a server of their own, and what is generated of it.

What it needs of npm is in $NODE_MODULES (`make test` puts it into .venv), or beside the
sources after `npm ci` there. `make test` without npm skips these.
"""

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
MODULES = Path(os.environ.get("NODE_MODULES") or NODE / "node_modules").absolute()

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no node"),
    pytest.mark.skipif(not (MODULES / "typescript").is_dir(), reason="no npm ci was run"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The package, compiled, outside the tree."""
    place = tmp_path_factory.mktemp("node")
    for name in ("src", "test"):
        shutil.copytree(NODE / name, place / name)
    for name in ("package.json", "tsconfig.json", "README.md"):
        shutil.copy(NODE / name, place)
    (place / "node_modules").symlink_to(MODULES)
    command = [shutil.which("node"), MODULES / "typescript" / "bin" / "tsc"]
    done = subprocess.run(command, cwd=place, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return place


def environment(tmp_path):
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


def test_its_own_tests_pass(built, tmp_path):
    tests = [str(path) for path in (built / "dist" / "test").glob("*.test.js")]
    done = subprocess.run(
        [shutil.which("node"), "--test", "--test-reporter=tap", *tests],
        cwd=built,
        env=environment(tmp_path),
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    passed = re.search(r"(?m)^# pass (\d+)$", done.stdout)
    assert passed, done.stdout[-2000:]
    assert int(passed[1]) >= 20


def test_what_is_generated_is_that_of_the_proto_files(tmp_path):
    variables = {**os.environ, "PYTHON": sys.executable, "MODULES": str(MODULES)}
    subprocess.run(["/bin/sh", NODE / "generate.sh", tmp_path], env=variables, check=True)
    for fresh in tmp_path.iterdir():
        if (NODE / "src" / "generated" / fresh.name).read_text() != fresh.read_text():
            pytest.fail(f"client/node/src/generated/{fresh.name} is stale: run npm run generate")
    assert {path.name for path in tmp_path.iterdir()} == {"health.ts", "prediction.ts"}


def test_the_lock_file_names_no_registry_but_the_public_one():
    packages = json.loads((NODE / "package-lock.json").read_text())["packages"]
    places = [one["resolved"] for one in packages.values() if "resolved" in one]
    assert all(place.startswith("https://registry.npmjs.org/") for place in places)
    assert all("integrity" in one for name, one in packages.items() if name)
