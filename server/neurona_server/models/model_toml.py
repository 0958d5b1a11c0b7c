"""model.toml: every key is optional, a misspelt one is an error."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurona_protos.prediction_pb2 import Task
from neurona_server.errors import LoadError
from neurona_server.models.beside import read_labels, read_text
from neurona_server.models.settings import (
    LATEST,
    MODEL_TOML,
    ModelSettings,
    TensorSettings,
    Traffic,
    Value,
    VersionPolicy,
    Which,
)
from neurona_server.models.toml_values import (
    MOST_VERSION,
    Read,
    close_match,
    flag,
    label_name,
    list_of,
    milliseconds,
    one_of,
    percent,
    table,
    table_by_name,
    text,
    which,
    whole,
    wrong,
)

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


def _values(where: str, value: Any) -> tuple[Value, ...]:
    read = list_of(table({"name": text, "unit": text}), "tables with name and unit")(where, value)
    return tuple(Value(**said) for said in read)


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
        said["values"] = (Value(unit=unit),)
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


def _check_label(where: str, name: Which, labels: Mapping[str, int]) -> None:
    known = [LATEST, *labels]
    if isinstance(name, str) and name and name not in known:
        expected = f"its labels: {', '.join(known)}{close_match(name, known)}"
        raise wrong(where, name, expected)
