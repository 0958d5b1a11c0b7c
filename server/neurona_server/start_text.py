"""What neurona-serve prints when it serves: the models, the addresses, and a call to paste.

The call has an input that the model takes: the example in its metadata, or small numbers of the
right shape. It is meant for a person in front of a terminal, and is no log.
"""

import contextlib
import json
import math
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurona_protos.prediction_pb2 import DataType, InputDescription, State, Task
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.address import UNIX
from neurona_server.errors import printable
from neurona_server.models.lifecycle.registry import ModelEntry, Registry
from neurona_server.models.model import Model
from neurona_server.models.signature import TensorSpec, means_unknown_size
from neurona_server.rpc.open_inference.messages import DATATYPE_NAMES

MAX_MODELS = 4
"""Models that are shown with their inputs and outputs."""

MAX_FAILURES = 3
"""Models that are shown with the reason for which they are not served."""

MAX_TENSORS = 4
"""Inputs, outputs or labels that are shown of a model."""

MAX_ELEMENTS = 100
"""Elements of inputs that a call writes out."""

FREE_SIZE = 8
"""Size in the example of axes of free size, but that of the batch."""

PRINT_SECONDS = 1.0
"""Seconds that the start waits until the text is printed."""

_WIDTH = 150

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  nothing listens there


@dataclass(frozen=True)
class ServedAddresses:
    """Where a server can be called, as it was told to listen, but with the ports that it has."""

    grpc: str
    """HOST:PORT or unix:PATH."""
    http: str = ""
    """HOST:PORT, "" without HTTP."""
    metrics: str = ""
    """HOST:PORT of the status page."""
    has_playground: bool = False
    certificate: str = ""
    """PEM file of the server's certificate, "" without TLS."""
    has_tokens: bool = False


def write_start_text(registry: Registry, addresses: ServedAddresses) -> str:
    """Return the text, with a newline at the end of each line.

    Args:
        registry: The models.
        addresses: Where they are served.
    """
    entries = {name: registry.entry(name) for name in registry.names()}
    served = {name: one.default for name, one in entries.items() if one.default is not None}
    lines = [*_model_lines(served), *_failure_lines(entries), "", *_address_lines(addresses)]
    if served:
        lines += ["", *_call_lines(next(iter(served.values())), addresses)]
    return "".join(f"{line}\n" for line in lines)


def print_start_text(text: str, log_format: str) -> None:
    """Print the text to standard output, unless nobody but a program reads it.

    Args:
        text: What `write_start_text` has returned.
        log_format: The option: what logs JSON has no person in front of it.
    """
    if log_format == "json" or sys.stdout is None:
        return

    def write() -> None:
        with contextlib.suppress(OSError, ValueError):  # it is closed
            sys.stdout.write(text)
            sys.stdout.flush()

    # In a thread: a pipe that is full and read by nobody blocks a write for ever.
    writer = threading.Thread(target=write, name="start text", daemon=True)
    writer.start()
    writer.join(PRINT_SECONDS)


def _model_lines(served: Mapping[str, Model]) -> Iterator[str]:
    if not served:
        yield "No model is loaded yet: a call loads it."
        return
    yield f"Serving {len(served)} model{'s' if len(served) > 1 else ''}:"
    shown = [*served][:MAX_MODELS]
    width = max(map(len, shown))
    for name in shown:
        model = served[name]
        version = "" if model.version == 1 else f" (version {model.version})"
        yield _shorten(f"  {name:{width}}{version}  {describe_model(model)}")
    if others := len(served) - len(shown):
        yield f"  ... and {others} more: neurona models"


def describe_model(model: Model) -> str:
    """Return the inputs and the answer of a model in a line."""
    inputs = _join([_tensor(spec, model) for spec in model.signature.inputs])
    return f"{inputs}  ->  {_answer(model)}"


def _answer(model: Model) -> str:
    metadata = model.metadata
    if metadata.task == Task.TASK_CLASSIFICATION:
        return f"label and probability: {_join(metadata.labels) or 'classes without names'}"
    if metadata.task == Task.TASK_REGRESSION:
        values = [" ".join(filter(None, [one.name, one.unit])) for one in metadata.values]
        return _join(values) or metadata.answer
    return _join([_tensor(spec, model) for spec in model.signature.outputs])


def _tensor(spec: TensorSpec, model: Model) -> str:
    if spec.any_shape:
        return str(printable(f"{spec.name}: {spec}"))
    sizes = [
        "?" if size is None or (isinstance(size, str) and means_unknown_size(size)) else str(size)
        for size in spec.shape
    ]
    if model.signature.batched and sizes:
        sizes[0] = "n"
    return printable(f"{spec.name}: {DATATYPE_NAMES[spec.dtype]} [{', '.join(sizes)}]")


def _join(texts: Sequence[str]) -> str:
    shown = [printable(text) for text in texts[:MAX_TENSORS]]
    if others := len(texts) - len(shown):
        shown.append(f"{others} more")
    return ", ".join(shown)


def _failure_lines(entries: Mapping[str, ModelEntry]) -> Iterator[str]:
    failures = [line for name, entry in entries.items() for line in _failures(name, entry)]
    for line in failures[:MAX_FAILURES]:
        yield _shorten(f"  not served: {line}")
    if (others := len(failures) - MAX_FAILURES) > 0:
        yield f"  ... and {others} more that are not served: neurona models"


def _failures(name: str, entry: ModelEntry) -> Iterator[str]:
    for number, version in entry.versions.items():
        if version.model is None and version.state == State.STATE_FAILED:
            yield printable(f"{name}/{number}: {version.reason}")
    for part, reason in entry.unusable.items():
        yield printable(f"{name}{part and '/'}{part}: {reason}")


def _address_lines(addresses: ServedAddresses) -> Iterator[str]:
    scheme = "https" if addresses.certificate else "http"
    yield f"gRPC        {_reachable(addresses.grpc)}"
    if addresses.http:
        root = f"{scheme}://{_reachable(addresses.http)}"
        yield f"HTTP        {root}/v2/models"
        if addresses.has_playground:
            yield f"Try it      {root}/"
    if addresses.metrics:
        yield f"Status      http://{_reachable(addresses.metrics)}/"


def _call_lines(model: Model, addresses: ServedAddresses) -> Iterator[str]:
    yield f"Call {model.name}:"
    inputs = example_inputs(model)
    in_json = inputs is not None and all(
        spec.dtype not in (DataType.DATA_TYPE_FLOAT16, DataType.DATA_TYPE_BFLOAT16)
        for spec in model.signature.inputs
    )
    if addresses.http and inputs is not None and in_json:
        yield f"  {_curl_call(model, inputs, addresses)}"
    elif not (addresses.certificate or addresses.has_tokens):
        yield f"  {_python_call(model, inputs, addresses)}"
    else:
        yield f"  neurona describe {model.name} --help"


def example_inputs(model: Model) -> dict[str, Any] | None:
    """Return inputs that a model takes, as nested lists; None if they have too many elements."""
    descriptions = {one.name: one for one in model.metadata.inputs}
    values: dict[str, Any] = {}
    elements = 0
    for spec in model.signature.inputs:
        description = descriptions.get(spec.name, InputDescription())
        shape = example_shape(spec, model)
        elements += math.prod(shape)
        if elements > MAX_ELEMENTS:
            return None
        values[spec.name] = _example(spec, description, shape, model)
    return values


def example_shape(spec: TensorSpec, model: Model) -> list[int]:
    """Return the shape of an input in the example: one row, and free axes of `FREE_SIZE`."""
    sizes: Sequence[object] = (None,) if spec.any_shape else spec.shape
    shape = [size if isinstance(size, int) else FREE_SIZE for size in sizes]
    if model.signature.batched and shape:
        shape[0] = 1
    return shape


def _example(
    spec: TensorSpec, description: InputDescription, shape: Sequence[int], model: Model
) -> Any:
    if description.example:
        sample = json.loads(description.example)
        return [sample] if model.signature.batched else sample
    if description.lengths_of:
        return np.full(shape, FREE_SIZE).tolist()
    if spec.dtype == DataType.DATA_TYPE_STRING:
        text = description.categories[0] if description.categories else "a"
        return np.full(shape, text, dtype=object).tolist()
    if spec.dtype == DataType.DATA_TYPE_BOOL:
        return np.full(shape, True).tolist()
    count = math.prod(shape)
    if spec.dtype != DataType.DATA_TYPE_BFLOAT16 and NUMPY_DTYPES[spec.dtype].kind != "f":
        return np.zeros(shape, int).tolist()  # a valid index of any table
    numbers = [round(0.1 + index % 10 / 10, 1) for index in range(count)]
    return np.array(numbers).reshape(shape).tolist()


def _curl_call(model: Model, inputs: Mapping[str, Any], addresses: ServedAddresses) -> str:
    tensors = [
        {
            "name": spec.name,
            "shape": [*np.shape(inputs[spec.name])],
            "datatype": DATATYPE_NAMES[spec.dtype],
            "data": inputs[spec.name],
        }
        for spec in model.signature.inputs
    ]
    scheme = "https" if addresses.certificate else "http"
    url = f"{scheme}://{_reachable(addresses.http)}/v2/models/{model.name}/infer"
    words = ["curl", url]
    if addresses.certificate:
        words += ["--cacert", addresses.certificate]
    body = json.dumps({"inputs": tensors}, ensure_ascii=False)
    call = shlex.join([*words, "-d", body])
    # Of the shell that has it: the token must not be in a text that is printed.
    return call + (' -H "authorization: Bearer $NEURONA_TOKEN"' if addresses.has_tokens else "")


def _python_call(model: Model, inputs: Mapping[str, Any] | None, addresses: ServedAddresses) -> str:
    arrays = []
    for spec in model.signature.inputs:
        values = (
            f"np.ones({example_shape(spec, model)}"
            if inputs is None
            else f"np.array({_python_value(inputs[spec.name])}"
        )
        arrays.append(f"{_python_value(spec.name)}: {values}, {_numpy_name(spec)})")
    address = _python_value(_reachable(addresses.grpc))
    call = f"predict({_python_value(model.name)}, {{{', '.join(arrays)}}})"
    # Without single quotes, which the shell has around it.
    program = (
        f"import numpy as np; from neurona_client import Client; print(Client({address}).{call})"
    )
    return shlex.join(["python", "-c", program])


def _python_value(value: Any) -> str:
    """Return nested lists, numbers and texts as an expression of Python, in double quotes."""
    if isinstance(value, list):
        return f"[{', '.join(map(_python_value, value))}]"
    if isinstance(value, str):
        return json.dumps(value)
    return 'float("nan")' if value is None else repr(value)


def _numpy_name(spec: TensorSpec) -> str:
    if spec.dtype == DataType.DATA_TYPE_STRING:
        return "object"
    if spec.dtype == DataType.DATA_TYPE_BFLOAT16:
        return "np.float32"
    name = NUMPY_DTYPES[spec.dtype].name
    return "bool" if name == "bool" else f"np.{name}"


def _reachable(address: str) -> str:
    """Return the first of the addresses as a caller on this machine names it."""
    first = address.partition(",")[0]
    if first.startswith(UNIX):
        return first
    host, _, port = first.rpartition(":")
    return f"{_WILDCARDS.get(host, host)}:{port}"


def _shorten(line: str) -> str:
    return line if len(line) <= _WIDTH else line[: _WIDTH - 3] + "..."
