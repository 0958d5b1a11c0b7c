"""The course of the manual: every command runs, in small, and leaves a model that can be asked."""

import os
import re
import shlex
from pathlib import Path

import onnxruntime
import pytest

from neurona_training.cli.arguments import parse
from neurona_training.cli.main import main

README = (Path(__file__).parents[2] / "training" / "README.md").read_text(encoding="utf-8")
_PUBLISHED = ("names", "vowels")  # data sets that are downloaded
_LARGE = ("adding", "pneumonia")  # minutes even in small: what they take is only parsed
_EPOCHS = {"mcculloch-pitts": [], "neocognitron": [], "compare": ["--epochs", "1"]}


def _steps():
    course = README.split("\n## The course, step by step\n", 1)[1].split("\n## ", 1)[0]
    for title, text in re.findall(r"(?s)\n### (.+?)\n(.*?)(?=\n### |\Z)", course):
        blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        commands = [shlex.split(line) for line in "".join(blocks).splitlines()]
        yield pytest.param(commands, id=title.split(".")[0])


def test_the_course_has_every_family_in_its_order():
    course = README.split("\n## The course, step by step\n", 1)[1].split("\n## ", 1)[0]
    order = re.findall(r"neurona-train ([a-z0-9-]+)", course)
    first = {name: order.index(name) for name in dict.fromkeys(order)}
    names = (
        *("mcculloch-pitts", "perceptron", "adaline", "mlp", "feedforward", "neocognitron"),
        *("lenet5", "resnet18", "rnn", "lstm"),
    )
    positions = [first[name] for name in names]
    assert positions == sorted(positions)


@pytest.mark.slow
@pytest.mark.parametrize("commands", list(_steps()))
def test_a_step_of_the_course_runs(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if any("--from" in words for words in commands):
        assert main(["lenet5", "--data", "digits", "--epochs", "1", "--no-report"]) == 0
    for program, *options in commands:
        assert program == "neurona-train"
        words = list(options)
        if set(_LARGE) & set(words):
            parse(words)
            continue
        if "--data" in words and words[words.index("--data") + 1] in _PUBLISHED:
            if "NEURONA_SHARED" not in os.environ:
                pytest.skip("published data: NEURONA_SHARED does not name their folder")
            words.extend(["--data-dir", str(Path(os.environ["NEURONA_SHARED"], "data"))])
        if "--table" not in words:
            words.extend(_EPOCHS.get(words[0], ["--epochs", "1"]))
        assert main(words) == 0, words
    for model in Path("models").glob("*/1/model.onnx"):
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
