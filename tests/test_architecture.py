import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BANNED = {"utils", "common", "core", "helpers", "base", "manager", "handler", "types"}
SOURCES = [
    path
    for folder in ("protos", "training", "server", "client")
    for path in (ROOT / folder).rglob("*.py")
    if "_pb2" not in path.name
]


def test_imports_go_one_way():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_wrong_import_would_be_seen(tmp_path):
    """The contracts are worth something only if they can be broken."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("protos", "training", "server", "client"):
        name = f"neurona_{folder}"
        shutil.copytree(ROOT / folder / name, tmp_path / name)
    with (tmp_path / "neurona_server" / "batching" / "queue.py").open("a") as file:
        file.write("\nimport neurona_server.rpc.call\nimport grpc\n")
    code = "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "inside the server imports go one way BROKEN" in done.stdout
    assert "only rpc imports grpc BROKEN" in done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_a_telling_name_and_says_what_it_is(path):
    assert path.stem not in BANNED
    assert ast.get_docstring(ast.parse(path.read_text())), "no module docstring"
