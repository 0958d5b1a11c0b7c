"""A file of options, --config FILE.toml, as arguments of the command line.

    recipe = "mlp"
    data = "houses.csv"
    target = "price"
    units = [128, 64]
    learning-rate = 2e-3

Each key is a long option without its dashes; tables only group them. What the file says goes
through the same parser as the command line, with the same checks.
"""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from neurona_training.errors import OptionError

_RECIPE = ("recipe", "recipes")  # the argument that has no dashes


def read_configuration(
    path: Path, parser: argparse.ArgumentParser, replaced: Container[str] = ()
) -> list[str]:
    """Returns the arguments that a file stands for.

    Args:
        path: of a TOML file.
        parser: of the command line, whose options the file may set.
        replaced: what the command line says itself, by argparse's names: for options that add up,
            and the recipe, it would otherwise be joined to what the file says.

    Raises:
        OptionError: the file cannot be read, or has an unknown option or a value of a type
            that no option has.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: not a TOML file: {error}") from error
    actions = {
        flag.removeprefix("--"): action
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--") and flag not in ("--help", "--config")
    }
    arguments: list[str] = []
    for key, value in _entries(content):
        name = key.replace("_", "-")
        if name in _RECIPE:
            names = value if isinstance(value, list) else [value]
            texts = [_as_text(path, key, one) for one in names]
            arguments[:0] = [] if "recipes" in replaced else texts
            continue
        if name not in actions:
            close = difflib.get_close_matches(name, [*_RECIPE, *actions], n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise OptionError(f"{path}: unknown option {key!r}{hint}")
        values = list(_arguments_of(path, key, value, actions[name]))
        arguments += [] if actions[name].dest in replaced else values
    return arguments


def _entries(content: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _entries(value)
        else:
            yield key, value


def _arguments_of(path: Path, key: str, value: object, action: argparse.Action) -> Iterator[str]:
    flag = action.option_strings[-1]
    if action.nargs == 0:  # it is there or not
        if not isinstance(value, bool):
            raise OptionError(f"{path}: option {key!r} is {value!r} (expected true or false)")
        if value:
            yield flag
    elif isinstance(value, list) and isinstance(action, argparse._AppendAction):
        for one in value:
            yield f"{flag}={_as_text(path, key, one)}"
    elif isinstance(value, list):
        yield f"{flag}={','.join(_as_text(path, key, one) for one in value)}"
    else:
        yield f"{flag}={_as_text(path, key, value)}"


def _as_text(path: Path, key: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise OptionError(f"{path}: option {key!r} is {value!r} (expected text or a number)")
    return str(value)
