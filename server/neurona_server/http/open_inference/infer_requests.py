"""Makes a ModelInferRequest of the body of a request over HTTP.

The body is JSON, and behind it the binary data of the inputs that have the parameter
`binary_data_size`. All tensors become raw contents, so that equal requests of both transports are
equal messages. Of a request like an earlier one only the binary data are new: `InferRequestReader`
keeps the start of its message.
"""

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import msgspec

from neurona_protos.open_inference_pb2 import InferParameter, ModelInferRequest
from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_protos.wire_format import header
from neurona_server.errors import InvalidArgumentError, TooLargeError, quoted
from neurona_server.http.open_inference.infer_responses import ResponseForm
from neurona_server.http.open_inference.json_tensors import (
    count_fields,
    has_bare_words,
    quote_words,
    read_json_tensor,
)
from neurona_server.rpc.limits import MAX_AXES, MAX_FIELDS, MAX_FIELDS_PER_TENSOR, MAX_REST_BYTES
from neurona_server.rpc.open_inference.messages import parse_datatype

HEADER_LENGTH = "inference-header-content-length"
"""The header with the bytes of JSON at the start of a body with binary data."""

BINARY_SIZE, BINARY_DATA, BINARY_OUTPUT = "binary_data_size", "binary_data", "binary_data_output"
"""Parameters of an input, of an output, and of a request for all of its outputs."""

CONTENT_TYPE, BASE64 = "content_type", "base64"
"""The parameter of an input whose texts stand for bytes, and its value, as in MLServer."""

MAX_KEPT_JSON = 4 << 10
MAX_KEPT = 512
"""Bytes of JSON up to which a request is kept, and how many are."""

MAX_SHAPE_BYTES = 24 * MAX_AXES

_RAW_CONTENTS = ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_INT64, _UINT64 = 1 << 63, 1 << 64

Scalar = bool | int | float | str
Parameters = Mapping[str, Scalar]

_DATA = (
    "The elements, flat or nested as the shape: numbers, true and false, or texts. "
    'The texts "NaN", "Infinity" and "-Infinity" stand for numbers.'
)


def _schema(description: str = "", **schema: Any) -> msgspec.Meta:
    return msgspec.Meta(description=description or None, extra_json_schema=schema)


class TensorBody(msgspec.Struct, forbid_unknown_fields=True):
    """An input: its data are here, behind the JSON, or in shared memory."""

    name: str
    datatype: str
    shape: Annotated[msgspec.Raw, _schema(type="array", items={"type": "integer"})]
    parameters: dict[str, Scalar] | None = None
    """`binary_data_size`: the bytes behind the JSON; `shared_memory_region`, `_byte_size` and
    `_offset`; `content_type`: "base64" for texts that stand for bytes."""
    data: (
        Annotated[msgspec.Raw, _schema(type="array", items={}, description=_DATA)]
        | msgspec.UnsetType
    ) = msgspec.UNSET


class OutputBody(msgspec.Struct, forbid_unknown_fields=True):
    """An output that the caller wants to have."""

    name: str
    parameters: dict[str, Scalar] | None = None
    """`binary_data`, `classification`, and those of shared memory."""


class RequestBody(msgspec.Struct, forbid_unknown_fields=True):
    """A request to a model."""

    inputs: list[TensorBody]
    outputs: list[OutputBody] | None = None
    """All, if none is named."""
    parameters: dict[str, Scalar] | None = None
    """`priority`, `timeout` (microseconds), `sequence_id`, `sequence_start`, `sequence_end`,
    `binary_data_output`."""
    id: str | None = None
    """A text of the caller's choice, which the response repeats."""
    model_name: str | None = None
    """As KServe's client writes it; the path counts."""
    model_version: str | None = None
    """The same."""


_decode_body = msgspec.json.Decoder(RequestBody).decode
_decode_shape = msgspec.json.Decoder(list[int]).decode


class InferRequest(NamedTuple):
    """A request as the service takes it, and how its caller wants the response."""

    message: bytes
    """The serialized ModelInferRequest."""

    form: ResponseForm


@dataclass
class _Kept:
    """What requests with the same JSON have in common; all of their inputs are binary data."""

    start: bytes
    sizes: tuple[int, ...]
    form: ResponseForm
    headers: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.headers = tuple(header(_RAW_CONTENTS, size) for size in self.sizes)


class InferRequestReader:
    """Makes messages of bodies. Thread-safe."""

    def __init__(self, max_bytes: int, max_tensors: int) -> None:
        """Make the reader.

        Args:
            max_bytes: The bytes that a message may have.
            max_tensors: The inputs and outputs that a request may have.
        """
        self._max_bytes = max_bytes
        self._max_fields = MAX_FIELDS + MAX_FIELDS_PER_TENSOR * max_tensors
        self._kept: dict[tuple[str, str, bytes], _Kept] = {}

    def read_like_earlier(
        self, model: str, version: str, body: bytes, json_bytes: int
    ) -> InferRequest | None:
        """Return the request of a body whose JSON is that of an earlier one; None if it is not.

        Args:
            model: The model's name.
            version: Its version or label; "" for the server's choice.
            body: The whole body.
            json_bytes: How many of its bytes are JSON.
        """
        kept = self._kept.get((model, version, body[:json_bytes]))
        if kept is None:
            return None
        sizes = kept.sizes
        if len(body) - json_bytes != sum(sizes):
            return None
        if len(sizes) == 1:
            return InferRequest(
                b"".join((kept.start, kept.headers[0], memoryview(body)[json_bytes:])), kept.form
            )
        return InferRequest(
            _join(kept.start, kept.headers, _split(body, json_bytes, sizes)), kept.form
        )

    def read(self, model: str, version: str, body: bytes, json_bytes: int) -> InferRequest:
        """Return the request of a body; see `read_like_earlier`.

        Raises:
            InvalidArgumentError: The body is not a request, or its data do not fit its shapes.
            TooLargeError: The message would have too many bytes.
        """
        text = body[:json_bytes]
        self._check_fields(text)
        parsed = _parse_body(text)
        form = ResponseForm(_is_flag(parsed.parameters, BINARY_OUTPUT, "the request"))
        message = ModelInferRequest(
            model_name=model, model_version=version, id=_read_id(parsed.id or "")
        )
        _set_parameters(message.parameters, parsed.parameters, "the request", (BINARY_OUTPUT,))
        for output in parsed.outputs or ():
            of_output = f"output {quoted(output.name)}"
            requested = message.outputs.add(name=output.name)
            _set_parameters(requested.parameters, output.parameters, of_output, (BINARY_DATA,))
            if output.parameters and BINARY_DATA in output.parameters:
                form.by_name[output.name] = _is_flag(output.parameters, BINARY_DATA, of_output)
        contents: list[bytes | memoryview] = []
        binary = memoryview(body)[json_bytes:]
        json_inputs = 0
        for tensor in parsed.inputs:
            binary = self._read_tensor(message, tensor, binary, contents)
            json_inputs += tensor.data is not msgspec.UNSET
        if binary:
            raise InvalidArgumentError(
                f"the body has {len(binary)} bytes behind the binary data of its inputs (expected "
                f"as many as their parameters {BINARY_SIZE!r} say)"
            )
        start = message.SerializeToString()
        sizes = tuple(len(content) for content in contents)
        size = len(start) + sum(sizes)
        if size > self._max_bytes:
            raise TooLargeError(
                f"the request has {size} bytes as tensors (expected at most {self._max_bytes}, the "
                "option max_message_bytes)"
            )
        headers = [header(_RAW_CONTENTS, size) for size in sizes]
        if json_bytes <= MAX_KEPT_JSON and not json_inputs and not message.id:
            self._keep((model, version, text), _Kept(start, sizes, form))
        return InferRequest(_join(start, headers, contents), form)

    def _keep(self, key: tuple[str, str, bytes], kept: _Kept) -> None:
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept[key] = kept

    def _check_fields(self, text: bytes) -> None:
        """Raise InvalidArgumentError for JSON with more fields than are worth the memory."""
        fields = count_fields(text, self._max_fields)
        if fields > self._max_fields:
            raise InvalidArgumentError(
                f"the request has {fields} fields (expected at most {self._max_fields})"
            )

    def _read_tensor(
        self,
        message: ModelInferRequest,
        tensor: TensorBody,
        binary: memoryview,
        contents: list[bytes | memoryview],
    ) -> memoryview:
        """Add an input to a message, and its data to `contents`.

        Returns:
            The rest of the binary data.
        """
        name = tensor.name
        of_input = f"input {quoted(name)}"
        shape = _read_shape(of_input, tensor.shape)
        added = message.inputs.add(name=name, datatype=tensor.datatype, shape=shape)
        parameters = tensor.parameters or {}
        _set_parameters(added.parameters, parameters, of_input, (BINARY_SIZE, CONTENT_TYPE))
        in_memory = "shared_memory_region" in parameters
        has_data = tensor.data is not msgspec.UNSET
        places = [BINARY_SIZE in parameters, has_data, in_memory]
        if sum(places) != 1:
            raise InvalidArgumentError(
                f"{of_input} has {'no data' if not any(places) else 'data in several places'} "
                f"(expected one of: 'data', parameter {BINARY_SIZE!r}, parameter "
                "'shared_memory_region')"
            )
        if BINARY_SIZE in parameters:
            size = parameters[BINARY_SIZE]
            if isinstance(size, bool) or not isinstance(size, int) or size < 0:
                raise InvalidArgumentError(
                    f"parameter {BINARY_SIZE!r} of {of_input} is {size!r} (expected an integer)"
                )
            if size > len(binary):
                raise InvalidArgumentError(
                    f"{of_input} has {len(binary)} bytes of binary data behind the JSON (expected "
                    f"{size}, its parameter {BINARY_SIZE!r})"
                )
            contents.append(binary[:size])
            return binary[size:]
        if isinstance(tensor.data, msgspec.Raw):
            datatype = parse_datatype(tensor.datatype, name)
            self._check_size(of_input, datatype, shape)
            encoding = parameters.get(CONTENT_TYPE)
            is_base64 = encoding == BASE64 and datatype == DataType.DATA_TYPE_STRING
            contents.append(
                read_json_tensor(
                    name, datatype, shape, memoryview(tensor.data), is_base64=is_base64
                )
            )
        return binary

    def _check_size(self, of_input: str, datatype: DataType, shape: Sequence[int]) -> None:
        """Check a shape before an array of it is made. Raises InvalidArgumentError."""
        if shape and min(shape) < 0:
            raise InvalidArgumentError(
                f"{of_input} has shape {list(shape)} (expected no negative size)"
            )
        size = math.prod(shape) * NUMPY_DTYPES[datatype].itemsize
        if datatype != DataType.DATA_TYPE_STRING and size > self._max_bytes:
            raise TooLargeError(
                f"{of_input} has {size} bytes as a tensor of shape {list(shape)} (expected at most "
                f"{self._max_bytes}, the option max_message_bytes)"
            )


def _parse_body(text: bytes) -> RequestBody:
    try:
        return _decode_body(text)
    except msgspec.ValidationError as error:
        raise InvalidArgumentError(f"invalid request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not isinstance(error, msgspec.DecodeError) or not has_bare_words(text):
            raise InvalidArgumentError(f"invalid JSON: {error}") from None
    try:
        return _decode_body(quote_words(text))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgumentError(f"invalid JSON: {error}") from None


def _join(start: bytes, headers: Sequence[bytes], contents: Sequence[bytes | memoryview]) -> bytes:
    pieces: list[bytes | memoryview] = [start]
    for one, content in zip(headers, contents, strict=True):
        pieces += (one, content)
    return b"".join(pieces)


def _split(body: bytes, start: int, sizes: Sequence[int]) -> list[memoryview]:
    view, parts = memoryview(body), []
    for size in sizes:
        parts.append(view[start : start + size])
        start += size
    return parts


def _read_shape(of_input: str, shape: msgspec.Raw) -> list[int]:
    text = bytes(shape)
    if len(text) > MAX_SHAPE_BYTES:
        raise InvalidArgumentError(
            f"{of_input} has a shape of {len(text)} characters (expected at most {MAX_AXES} axes)"
        )
    try:
        sizes = _decode_shape(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        sizes = [_INT64]
    if any(not -_INT64 <= size < _INT64 for size in sizes):
        raise InvalidArgumentError(
            f"{of_input} has shape {text.decode(errors='replace')[:100]} (expected a list of "
            "integers of 64 bits)"
        )
    return sizes


def _read_id(request_id: str) -> str:
    if len(request_id) > MAX_REST_BYTES:
        raise InvalidArgumentError(
            f"the request's id has {len(request_id)} characters (expected at most {MAX_REST_BYTES})"
        )
    return request_id


def _is_flag(parameters: Parameters | None, name: str, of_what: str) -> bool:
    """Return the value of a parameter that is a boolean; False without it."""
    value = parameters.get(name, False) if parameters else False
    if not isinstance(value, bool):
        raise InvalidArgumentError(
            f"parameter {name!r} of {of_what} is {value!r} (expected true or false)"
        )
    return value


def _set_parameters(
    target: MutableMapping[str, InferParameter],
    parameters: Parameters | None,
    of_what: str,
    left_out: Sequence[str],
) -> None:
    """Copy parameters into a message, but for those that are of this transport."""
    for name, value in (parameters or {}).items():
        if name in left_out:
            continue
        parameter = target[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, str):
            parameter.string_param = value
        elif isinstance(value, float):
            parameter.double_param = value
        elif -_INT64 <= value < _INT64:
            parameter.int64_param = value
        elif 0 <= value < _UINT64:
            parameter.uint64_param = value
        else:
            raise InvalidArgumentError(
                f"parameter {quoted(name)} of {of_what} is {value} (expected 64 bits)"
            )
