"""What may stand behind the flags of `neurona-train`: functions that read a word or refuse it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping

from neurona_training.data import own
from neurona_training.data.catalogue import SOURCES


def data(text: str) -> str:
    return text if own.is_own(text) and text not in SOURCES else one_of(SOURCES, "data set")(text)


def positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def one_of(table: Mapping[str, object], called: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in table:
            raise argparse.ArgumentTypeError(f"no {called} {text!r}; there are {', '.join(table)}")
        return text

    return parse


def model_name(text: str) -> str:
    # What the server takes for a name in its repository.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not letters, digits, '.', '_' and '-'")
    return text


def at_least(smallest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # 2**63: the seeds that torch takes end there
        if not text.isdecimal() or not smallest <= int(text) < 2**63:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {smallest}")
        return int(text)

    return parse
