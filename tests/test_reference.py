"""The reference pages are what the code says."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("server/docs", {"options.md", "metrics.md", "errors.md"}),
        ("protos/docs", {"neurona_v1.md"}),
    ],
)
def test_reference_pages_are_fresh(folder, names, tmp_path):
    command = [sys.executable, ROOT / folder / "generate.py", tmp_path]
    subprocess.run(command, check=True)
    assert {path.name for path in tmp_path.iterdir()} == names
    for path in tmp_path.iterdir():
        if (ROOT / folder / path.name).read_text("utf-8") != path.read_text("utf-8"):
            pytest.fail(f"{folder}/{path.name} is stale: run `make docs`")


def test_every_message_field_and_method_of_the_api_is_explained():
    page = (ROOT / "protos" / "docs" / "neurona_v1.md").read_text("utf-8")
    assert "|  |" not in page, "a field or a value without a comment"
    assert "\n\n\n\n" not in page, "a message or a method without a comment"
