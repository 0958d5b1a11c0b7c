"""The manual of training and its example: commands parse, code runs, lists are complete."""

import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from neurona_training.cli.arguments import _make_parser, parse
from neurona_training.cli.comparison import make_compare_parser, parse_compare
from neurona_training.cli.verification import make_verify_parser, parse_verify
from neurona_training.data.catalogue import SOURCES
from neurona_training.export import export
from neurona_training.recipes import RECIPES

ROOT = Path(__file__).parents[2]
README = (ROOT / "training" / "README.md").read_text(encoding="utf-8")
DOCS = sorted((ROOT / "training" / "docs").glob("*.md"))


def _shell_commands():
    """Each command of the shell blocks as words, without the variables set before it."""
    texts = [README, *(path.read_text(encoding="utf-8") for path in DOCS)]
    blocks = re.findall(r"```sh\n(.*?)```", "".join(texts), re.DOTALL)
    for line in "".join(blocks).splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        yield words


def _manual(name):
    return (ROOT / "training" / "docs" / name).read_text(encoding="utf-8")


def _table(heading, text=README):
    """The rows of the first table below a heading, as lists of cells."""
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = re.search(r"(?m)(^\|.*\n)+", section).group().splitlines()
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]


@pytest.mark.parametrize("words", list(_shell_commands()), ids=" ".join)
def test_a_command_of_the_manual_parses(words):
    match words:
        case ["neurona-train", "compare", *arguments]:
            parse_compare(arguments)
        case ["neurona-train", "verify", *arguments]:
            parse_verify(arguments)
        case ["neurona-train", *arguments]:
            parse(arguments)
        case ["torchrun", "--nproc-per-node", *_]:
            module = words.index("-m") + 1
            assert words[module] == "neurona_training.cli.main"
            parse(words[module + 1 :])
        case ["python", "-m", module, *_]:
            assert (ROOT / "training" / Path(*module.split("."))).with_suffix(".py").is_file()
        case ["pip", "install", requirement]:
            extra = re.fullmatch(r"neurona\[(\w+)\]", requirement).group(1)
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert extra in project["optional-dependencies"]
        case _:
            pytest.fail(f"unexpected command {words}")


def test_the_python_of_the_manual_runs(tmp_path):
    for code in re.findall(r"```python\n(.*?)```", _manual("extending.md"), re.DOTALL):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_manual_lists_every_recipe_with_its_data_sets():
    listed = {
        re.findall(r"`(.+?)`", recipe)[0]: re.findall(r"`(.+?)`", data)
        for recipe, _, data in _table("Recipes")
    }
    assert listed == {name: list(recipe.tuned) for name, recipe in RECIPES.items()}


def test_the_manual_lists_every_data_set():
    listed = [name for cells in _table("Data sets") for name in re.findall(r"`(.+?)`", cells[0])]
    assert sorted(listed) == sorted(SOURCES)


def test_the_manual_lists_every_option():
    listed = {
        re.match(r" `(--[a-z-]+)", cells[0]).group(1)
        for cells in _table("Options", _manual("options.md"))
    }
    flags = {flag for action in _make_parser()._actions for flag in action.option_strings}
    assert listed == flags - {"-h", "--help"}


def test_the_manual_has_the_options_of_compare():
    own = [action for action in _make_parser()._actions for action in action.option_strings]
    flags = {flag for action in make_compare_parser()._actions for flag in action.option_strings}
    manual = _manual("selection.md")
    assert flags - set(own) == set(re.findall(r"`(--(?:metric|no-baselines))`", manual))


def test_the_manual_has_the_options_of_verify():
    flags = {flag for one in make_verify_parser()._actions for flag in one.option_strings}
    section = _manual("export.md").split("\n## Verify a file\n", 1)[1].split("\n## ", 1)[0]
    assert flags - {"-h", "--help"} == set(re.findall(r"--[a-z]+", section))


def test_the_manual_has_the_arguments_of_export():
    section = _manual("export.md").split("\n## Any module\n", 1)[1].split("\n## ", 1)[0]
    names = [*inspect.signature(export).parameters][1:]
    assert [name for name in names if f"`{name}" not in section] == []


@pytest.mark.slow
def test_the_example_of_an_export_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "input sequence: batch x time x 4\noutput probabilities: batch x 3" in done.stdout
    assert (tmp_path / "models" / "reader" / "1" / "model.onnx").is_file()


@pytest.mark.long
@pytest.mark.slow
def test_the_example_exports_and_verifies(tmp_path):
    example = ROOT / "training" / "examples" / "export_your_module.py"
    command = [sys.executable, str(example), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("equal in ")
    assert (tmp_path / "models" / "digits" / "1" / "model.onnx").is_file()


def test_the_rooms_of_the_manual_exist():
    package = ROOT / "training" / "neurona_training"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert {cells[0].strip(" `/") for cells in _table("Rooms", _manual("extending.md"))} == folders


@pytest.mark.slow
def test_the_example_trains_on_a_csv_file_and_predicts(tmp_path):
    example = ROOT / "training" / "examples" / "train_on_your_csv.py"
    command = [sys.executable, str(example), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models" / "mlp-wines" / "1" / "model.onnx").is_file()
    predictions = done.stdout.splitlines()[-2:]
    assert [line.split(":")[0] for line in predictions] == ["grower 0", "grower 1"]
