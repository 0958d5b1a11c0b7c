"""The manual's table of differences has a row for each one that a case declares."""

import re
from pathlib import Path

import pytest

MANUAL = Path(__file__).parents[2] / "server" / "docs" / "triton.md"
CASES = sorted({*Path(__file__).parent.glob("test_*.py")} - {Path(__file__)})


def declared_rows():
    names = set()
    for path in CASES:
        names.update(re.findall(r'declared="([^"]+)"', path.read_text()))
        for table in re.findall(r"UNSUPPORTED = \{(.*?)\}", path.read_text(), re.DOTALL):
            names.update(re.findall(r'"simple_\w+": "([^"]+)"', table))
    return sorted(names)


@pytest.mark.parametrize("name", declared_rows())
def test_the_table_has_the_row(name):
    rows = re.findall(r"(?m)^\| (.+?) \|", MANUAL.read_text())
    assert name in rows
