"""The code and the commands in the client's documents work."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from neurona_client import errors
from neurona_client.cli.main import COMMANDS, make_parser

FOLDER = Path(__file__).parents[2] / "client"
README = (FOLDER / "README.md").read_text()
DOCUMENTS = [FOLDER / "README.md", FOLDER / "docs" / "languages.md", FOLDER / "node" / "README.md"]
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMAND_LINES = re.findall(r"(?m)^    (neurona .*?)\s*(?:#.*)?$", README)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_the_python_runs(block, demo_server, secure_demo_server, tmp_path):
    code = BLOCKS[block]
    secure_server, folder = secure_demo_server
    (tmp_path / "ca.pem").write_bytes((folder / "ca.pem").read_bytes())
    if "zero.png" in code:
        image = pytest.importorskip("PIL.Image", reason="needs Pillow")
        image.new("L", (32, 32), 200).save(tmp_path / "zero.png")
    code = code.replace("models.example.com:8001", secure_server.address)
    code = code.replace("127.0.0.1:8001", demo_server.address)
    code = code.replace("localhost:8001", f"localhost:{demo_server.port}")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_the_command_lines_parse():
    for line in COMMAND_LINES:
        program, *arguments = shlex.split(line)
        assert program == "neurona"
        make_parser().parse_args(arguments)
    assert {line.split()[1] for line in COMMAND_LINES} == {command.NAME for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.NAME)
def test_the_examples_in_the_help_parse(command):
    lines = re.findall(r"(?m)^  .*?(neurona .*?)(?: {2,}.*| [|>].*)?$", command.EXAMPLES)
    assert lines
    for line in lines:
        make_parser().parse_args(shlex.split(line)[1:])


def test_the_errors_are_those_of_the_client():
    in_table = set(re.findall(r"(?m)^\| `(\w+Error)` \|", README))
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.NeuronaError)
    }
    assert in_table == classes - {"NeuronaError"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_links_lead_somewhere(document):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(#[\w-]+)?\)", document.read_text()):
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), target
        if anchor:
            titles = re.findall(r"(?m)^#+ (.*)$", path.read_text())
            anchors = {
                "#" + re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in titles
            }
            assert anchor in anchors
