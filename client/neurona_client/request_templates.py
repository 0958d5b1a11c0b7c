"""Templates of requests: what is the same in all requests of one kind is encoded once.

A template belongs to a model (version, label) and request options such as top_k. It joins a
PredictRequest from bytes that it keeps for each shape of the input, and the array's own bytes.
"""

from typing import Any, NamedTuple

import numpy as np

from neurona_client.descriptions import ModelDescription
from neurona_client.errors import InvalidInputError
from neurona_client.inputs import (
    Inputs,
    PreparedTensors,
    prepare_inputs,
    prepare_undescribed_inputs,
)
from neurona_protos.prediction_pb2 import (
    DataType,
    PredictRequest,
    PredictResponse,
    Priority,
    Tensor,
)
from neurona_protos.tensors import NUMPY_DTYPES, TensorError, encode
from neurona_protos.wire_format import (
    fields,
    header,
    length_delimited,
    read_varint,
    signed_varint,
    varint,
)

PRIORITIES = {
    "normal": Priority.PRIORITY_NORMAL,
    "high": Priority.PRIORITY_HIGH,
    "low": Priority.PRIORITY_LOW,
}
_MAX_SHAPES_PER_TEMPLATE = 256
_INPUTS = PredictRequest.INPUTS_FIELD_NUMBER

_ModelKey = tuple[str, int | None, str | None]
"""Model, version and label."""


def is_unicode(text: object) -> bool:
    """Whether a value is text that can be sent: lone surrogates stand for bytes of no UTF-8."""
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False


class RequestOptions(NamedTuple):
    """What a call specifies besides its inputs; `Client.predict` describes each."""

    model: str
    version: int | None
    label: str | None
    top_k: int
    raw_outputs: bool
    priority: str

    def validate(self) -> None:
        """Check the options.

        Raises:
            InvalidInputError: an option is outside its range, or version and label are both set.
        """
        for name, text in (("model", self.model), ("label", self.label)):
            if text is not None and not is_unicode(text):
                raise InvalidInputError(f"{name} is {text!r} (expected Unicode text)")
        if self.version is not None and self.label is not None:
            raise InvalidInputError("version and label are both set (expected one of them)")
        if self.priority not in PRIORITIES:
            raise InvalidInputError(
                f"priority is {self.priority!r} (expected one of {', '.join(PRIORITIES)})"
            )
        if not 1 <= self.top_k < 2**32:
            raise InvalidInputError(f"top_k is {self.top_k} (expected 1 to 2**32 - 1)")
        if self.version is not None and not -(2**63) <= self.version < 2**63:
            raise InvalidInputError(f"version is {self.version} (expected a 64-bit integer)")


class EncodedRequest(NamedTuple):
    """A PredictRequest in bytes; is_sample: its input was one sample without a batch axis."""

    message: bytes
    is_sample: bool


class RequestTemplate:
    """Encodes requests that differ in their inputs alone."""

    def __init__(self, options: RequestOptions, description: ModelDescription | None) -> None:
        """Create a template.

        Args:
            options: what all requests have in common.
            description: the model; None where the token may not read it.

        Raises:
            InvalidInputError: see `RequestOptions.validate`.
        """
        options.validate()
        self.options = options
        self.description = description
        self.task = "" if description is None else description.task
        self.response_prefixes: set[bytes] = set()
        """First bytes, with model and version, of responses that were received."""
        prefix = PredictRequest(model=options.model, label=options.label)
        if options.version is not None:
            prefix.version = options.version
        self._prefix = prefix.SerializeToString()
        self._suffix = PredictRequest(
            top_k=options.top_k if options.top_k > 1 else 0,
            raw_outputs=options.raw_outputs,
            priority=PRIORITIES[options.priority],
        ).SerializeToString()
        self._prefix_by_shape: dict[tuple[int, ...], tuple[bytes, bool]] = {}
        # An array of the dtype of the only input need not be checked against the description.
        self._dtype: np.dtype[Any] | None = None
        if description is not None and len(description.inputs) == 1:
            dtype = NUMPY_DTYPES.get(description.inputs[0].data_type)
            if dtype is not None and dtype.kind != "O":
                self._dtype = dtype

    def encode(self, inputs: Inputs) -> EncodedRequest:
        """Encode a request.

        Raises:
            InvalidInputError: see `prepare_inputs`.
        """
        request = self.encode_known_shape(inputs)
        if request is not None:
            return request
        if self.description is None:
            return EncodedRequest(self._join(prepare_undescribed_inputs(inputs)), is_sample=False)
        tensors, is_sample = prepare_inputs(self.description, inputs)
        if type(inputs) is np.ndarray and inputs.dtype == self._dtype:
            self._remember_shape(inputs.shape, tensors, is_sample)
        return EncodedRequest(self._join(tensors), is_sample)

    def encode_known_shape(self, inputs: object) -> EncodedRequest | None:
        """Encode an array of a dtype and shape that was encoded before; else return None."""
        if type(inputs) is np.ndarray and inputs.dtype == self._dtype:
            stored = self._prefix_by_shape.get(inputs.shape)
            if stored is not None:
                return EncodedRequest(stored[0] + inputs.tobytes() + self._suffix, stored[1])
        return None

    def _join(self, tensors: PreparedTensors) -> bytes:
        pieces: list[bytes | memoryview] = [self._prefix]
        for name, dtype_number, array in tensors:
            try:
                data = encode(name, array, dtype_number)
            except TensorError as error:
                raise InvalidInputError(str(error)) from error
            pieces += (_tensor_prefix(name, dtype_number, array.shape, len(data)), data)
        pieces.append(self._suffix)
        return b"".join(pieces)

    def _remember_shape(
        self, shape: tuple[int, ...], tensors: PreparedTensors, is_sample: bool
    ) -> None:
        if len(self._prefix_by_shape) >= _MAX_SHAPES_PER_TEMPLATE:
            self._prefix_by_shape = {}  # a new one: another thread may be reading the old
        name, dtype_number, array = tensors[0]
        prefix = self._prefix + _tensor_prefix(name, dtype_number, array.shape, array.nbytes)
        self._prefix_by_shape[shape] = (prefix, is_sample)


def _tensor_prefix(name: str, dtype_number: DataType, shape: tuple[int, ...], nbytes: int) -> bytes:
    """Encode all of a tensor in a request that precedes its data."""
    content = length_delimited(Tensor.NAME_FIELD_NUMBER, name.encode())
    content += varint(Tensor.DTYPE_FIELD_NUMBER << 3) + varint(dtype_number)
    if shape:
        content += length_delimited(Tensor.SHAPE_FIELD_NUMBER, b"".join(map(signed_varint, shape)))
    if nbytes:
        content += header(Tensor.DATA_FIELD_NUMBER, nbytes)
    return header(_INPUTS, len(content) + nbytes) + content


def _response_version(response: bytes) -> int:
    for field, start, _ in fields(response, 0, len(response)):
        if field == PredictResponse.VERSION_FIELD_NUMBER:
            return read_varint(response, start)[0]
    return 0


class TemplateCache:
    """The request templates and model descriptions of one client. Safe for threads."""

    MAX_ENTRIES = 1024

    def __init__(self) -> None:
        self.templates: dict[tuple[object, ...], RequestTemplate] = {}
        """By request options; only to be read from outside."""
        self._descriptions: dict[_ModelKey, ModelDescription | None] = {}
        self._answered_versions: dict[_ModelKey, set[int]] = {}

    def get(self, options: RequestOptions) -> RequestTemplate | None:
        """Return the template for the options; None: the model must be described first."""
        template = self.templates.get(options)
        model_key = options[:3]
        if template is None and model_key in self._descriptions:
            return self._add_template(options, self._descriptions[model_key])
        return template

    def add(self, options: RequestOptions, description: ModelDescription | None) -> RequestTemplate:
        """Store the description of a model and return the template for the options."""
        if len(self._descriptions) >= self.MAX_ENTRIES:
            self._descriptions = {}
            self._answered_versions = {}
        self._descriptions[options[:3]] = description
        return self._add_template(options, description)

    def is_from_new_version(self, template: RequestTemplate, response: bytes) -> bool:
        """Record a response; return whether its version is new."""
        # The model and the version.
        prefix = response[: response[1] + 4] if len(response) > 1 else b""
        if prefix in template.response_prefixes:
            return False
        version = _response_version(response)
        versions = self._answered_versions.setdefault(template.options[:3], set())
        if template.description is not None:
            versions.add(template.description.version)
        if version < 128:
            template.response_prefixes.add(prefix)
        if version in versions or template.description is None:
            return False
        if len(versions) >= self.MAX_ENTRIES:
            versions.clear()
        versions.add(version)
        return True

    def invalidate(self, options: RequestOptions) -> None:
        """Drop what is stored about a model, which may be outdated."""
        model_key = options[:3]
        self._descriptions.pop(model_key, None)
        for key in list(self.templates):
            if key[:3] == model_key:
                self.templates.pop(key, None)

    def _add_template(
        self, options: RequestOptions, description: ModelDescription | None
    ) -> RequestTemplate:
        if len(self.templates) >= self.MAX_ENTRIES:
            self.templates = {}
        self.templates[options] = template = RequestTemplate(options, description)
        return template
