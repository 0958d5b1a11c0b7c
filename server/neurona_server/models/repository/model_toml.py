"""model.toml: every key is optional, a misspelt one is an error."""

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neurona_protos.prediction_pb2 import Task
from neurona_server.errors import LoadError, close_match, quoted
from neurona_server.models.repository.model_files import read_labels, read_text
from neurona_server.models.repository.settings import (
    LATEST,
    MODEL_TOML,
    ModelSettings,
    TensorSettings,
    Traffic,
    ValueSettings,
    VersionOrLabel,
    VersionPolicy,
)

Read = Callable[[str, Any], Any]

MOST_VERSION = 10**18 - 1
"""The highest number that a folder of a version has."""

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,9})?) *%?")
_LABEL_EXPECTED = "expected a letter, then up to 63 letters, digits, dots, dashes or underscores"


def wrong(where: str, value: object, expected: str) -> LoadError:
    try:
        shown = quoted(value) if isinstance(value, str) else repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        shown = "a number with too many digits"
    return LoadError(f"{where} is {shown[:110]}; {expected}")


def table(keys: Mapping[str, Read]) -> Read:
    """A table with these keys, each of them optional."""

    def read(where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise wrong(where, value, "expected a table")
        for key in value:
            if key not in keys:
                place = f"{where} has" if where else "it has"
                raise LoadError(f"{place} an unknown key {quoted(key)}{close_match(key, keys)}")
        prefix = f"{where}." if where else ""
        return {key: keys[key](prefix + key, item) for key, item in value.items()}

    return read


def table_by_name(item: Read, name: Read | None = None) -> Read:
    """A table whose keys are names; `name` reads them."""

    def read(where: str, value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise wrong(where, value, "expected a table")
        found: dict[Any, Any] = {}
        for key, entry in value.items():
            path = f"{where}.{key}" if _LABEL.fullmatch(key) else f"{where}.{quoted(key)}"
            read_key = name(f"a key of {where}", key) if name else key
            if read_key in found:  # 2 and 02
                raise LoadError(f"{where} names {read_key} twice; expected it once")
            found[read_key] = item(path, entry)
        return found

    return read


def whole(least: int, most: int) -> Read:
    def read(where: str, value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise wrong(where, value, f"expected a whole number from {least} to {most}")
        return value

    return read


def milliseconds(where: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1e8:  # not a number fails too
        raise wrong(where, value, "expected milliseconds from 0 to 100000000")
    return float(value)


def percent(where: str, value: Any) -> float:
    number = value
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)):
        number = float(match[1])
    if type(number) not in (int, float) or not 0 <= number <= 100:
        raise wrong(where, value, "expected percent from 0 to 100")
    return float(number)


def text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise wrong(where, value, "expected a text")
    return value


def flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise wrong(where, value, "expected true or false")
    return value


def one_of(meanings: Mapping[str, Any]) -> Read:
    def read(where: str, value: Any) -> Any:
        if not isinstance(value, str) or value not in meanings:
            match = close_match(value, meanings) if isinstance(value, str) else ""
            raise wrong(where, value, f"expected {', '.join(meanings)}{match}")
        return meanings[value]

    return read


def list_of(item: Read, what: str) -> Read:
    def read(where: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not value:
            raise wrong(where, value, f"expected a list of {what}")
        return tuple(item(f"{where}[{index}]", entry) for index, entry in enumerate(value))

    return read


def label_name(where: str, value: Any) -> str:
    if value == LATEST:
        raise wrong(where, value, "that one is built in; expected another name")
    if not isinstance(value, str) or not _LABEL.fullmatch(value):
        raise wrong(where, value, _LABEL_EXPECTED)
    return value


def which(where: str, value: Any) -> VersionOrLabel:
    """A version as a number, or in a text of digits; else a label."""
    number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,18}", value) else value
    if type(number) is int and 0 < number <= MOST_VERSION:
        return number
    if isinstance(value, str) and _LABEL.fullmatch(value):
        return value
    raise wrong(where, value, "expected a version or a label")


_MOST = 2**31 - 1


def _policy(where: str, value: Any) -> VersionPolicy:
    try:
        return VersionPolicy.parse(value)
    except ValueError as error:
        raise wrong(where, value, str(error)) from error


def _axis(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(where, value, 'expected a name, or "" for an axis without one')
    return value


def _axes(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):  # a scalar has none
        raise wrong(where, value, "expected a list of names, one for each axis")
    return tuple(_axis(f"{where}[{index}]", name) for index, name in enumerate(value))


def _tensors(where: str, value: Any) -> dict[str, TensorSettings]:
    keys: dict[str, Read] = {"axes": _axes}
    if where == "inputs":  # what an output is stands in labels, values and description
        keys |= {"description": text, "unit": text}
    read = table_by_name(table(keys))(where, value)
    return {name: TensorSettings(**said) for name, said in read.items()}


def _values(where: str, value: Any) -> tuple[ValueSettings, ...]:
    read = list_of(table({"name": text, "unit": text}), "tables with name and unit")(where, value)
    return tuple(ValueSettings(**said) for said in read)


_TASKS = {
    "classification": Task.TASK_CLASSIFICATION,
    "regression": Task.TASK_REGRESSION,
    "tensors": Task.TASK_TENSORS,
}
_OVERRIDES: Mapping[str, Read] = {
    "max_batch_rows": whole(1, _MOST),
    "max_queue_rows": whole(1, _MOST),
    "max_queue_bytes": whole(1, 2**50),
    "max_delay_ms": milliseconds,
    "latency_objective_ms": milliseconds,
    "inline": one_of({name: name for name in ("auto", "always", "never")}),
    "instances": whole(1, 64),
    "threads": whole(0, 1024),
    "providers": list_of(one_of({name: name for name in ("cuda", "cpu")}), "cuda and cpu"),
}
KEYS: Mapping[str, Read] = {
    "task": one_of(_TASKS),
    "answer": text,
    "labels": list_of(text, "texts"),
    "labels_file": text,
    "softmax": flag,
    "values": _values,
    "unit": text,
    "description": text,
    "inputs": _tensors,
    "outputs": _tensors,
    "batched": flag,
    "versions": _policy,
    "version_labels": table_by_name(whole(1, MOST_VERSION), label_name),
    "default": which,
    "traffic": table_by_name(percent, which),
    "shadow": table({"to": which, "share": percent}),
    **_OVERRIDES,
}


def read_model_toml(folder: Path) -> ModelSettings:
    """Raises LoadError with one line that begins with the file's name."""
    try:
        try:
            said = tomllib.loads(read_text(folder, MODEL_TOML))
        except ValueError as error:
            raise LoadError(f"it is not TOML: {error}") from error
        except RecursionError as error:
            raise LoadError("it is not TOML: too many levels") from error
        return _settings(folder, table(KEYS)("", said))
    except LoadError as error:
        raise LoadError(f"{MODEL_TOML}: {error}") from error


def _settings(folder: Path, said: dict[str, Any]) -> ModelSettings:
    for one, other in (("labels", "labels_file"), ("values", "unit")):
        if one in said and other in said:
            raise LoadError(f"it has {one} and {other}; expected one of them")
    if (name := said.pop("labels_file", None)) is not None:
        try:
            said["labels"] = read_labels(folder, name)
        except LoadError as error:
            raise LoadError(f"labels_file: {error}") from error
    if (unit := said.pop("unit", None)) is not None:
        said["values"] = (ValueSettings(unit=unit),)
    labels = said.get("version_labels", {})
    said["traffic"] = _traffic(said, labels)
    listed = said["versions"].listed if "versions" in said else ()
    for label, version in labels.items():
        if listed and version not in listed:
            raise wrong(f"version_labels.{label}", version, f"versions lists {[*listed]}")
    return ModelSettings(**said)


def _traffic(said: dict[str, Any], labels: Mapping[str, int]) -> Traffic:
    """Takes the keys that are about traffic out of `said`."""
    default = said.pop("default", "")
    shares = said.pop("traffic", {})
    shadow = said.pop("shadow", None)
    if shadow is not None and "to" not in shadow:
        raise LoadError("shadow has no key 'to'; expected the version or label that gets a copy")
    shadow = shadow or {}
    places = {"default": default, "shadow.to": shadow.get("to", "")}
    places |= {f"traffic.{name}": name for name in shares}
    for where, name in places.items():
        _check_label(where, name, labels)
    if (total := sum(shares.values())) > 100 + 1e-9:  # 33.3 and 33.3 and 33.4
        raise LoadError(f"the shares of traffic add up to {total:g} percent; expected 100 at most")
    return Traffic(default, shares, shadow.get("to", ""), shadow.get("share", 100.0))


def _check_label(where: str, name: VersionOrLabel, labels: Mapping[str, int]) -> None:
    known = [LATEST, *labels]
    if isinstance(name, str) and name and name not in known:
        expected = f"its labels: {', '.join(known)}{close_match(name, known)}"
        raise wrong(where, name, expected)
