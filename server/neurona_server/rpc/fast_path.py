"""Submits requests without parsing them if an equal one except for tensor data was valid."""

import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import Message

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_protos.wire_format import find_fields
from neurona_server.batching.policy import Priority
from neurona_server.errors import NeuronaError
from neurona_server.models.model import Model
from neurona_server.rpc.submission import (
    AcceptedRequest,
    Responder,
    ResponseWriter,
    Submission,
    send,
)

MAX_TEMPLATES = 1024
MAX_TEMPLATES_PER_LENGTH = 16
"""Templates of equally long messages: each such message is compared with all of them."""

MAX_TEMPLATE_BYTES = 8 << 10
"""Bytes of a message without its tensors' data, which are kept."""

MAX_CREDIT = 256
"""Messages that are remembered although none has matched a template since: a caller whose messages
all differ costs no more than these."""


class MessageTemplate:
    """The bytes of a message without its tensors' data. Compared by identity."""

    __slots__ = ("_head", "_middles", "_tail", "model_key", "size", "spans")

    def __init__(self, message: bytes, spans: Sequence[tuple[int, int]]) -> None:
        self.spans = tuple(spans)
        """The start and stop of each tensor's data."""

        self.size = len(message)
        self.model_key: tuple[Any, ...] = ()
        """The arguments that resolve the model."""

        self._head = message[: spans[0][0]]
        self._tail = message[spans[-1][1] :]
        between = zip([stop for _, stop in spans], [start for start, _ in spans[1:]], strict=False)
        self._middles = [(start, stop, message[start:stop]) for start, stop in between]

    def matches(self, message: bytes) -> bool:
        """Return whether a message of the same size differs only in the data of its tensors."""
        if not (message.startswith(self._head) and message.endswith(self._tail)):
            return False
        if not self._middles:  # most messages have one tensor
            return True
        return all(message[start:stop] == middle for start, stop, middle in self._middles)


class TemplateCache:
    """Templates of one type of message, which has its tensors' data in the fields at `path`.

    Only the transport's thread uses it.
    """

    def __init__(self, parse: Callable[[bytes], Message], path: tuple[int, ...]) -> None:
        self._parse = parse
        self._path = path
        self._templates: dict[int, list[MessageTemplate]] = {}  # by the size of their messages
        self._count = 0
        self._credit = MAX_CREDIT

    def lookup(self, message: bytes) -> MessageTemplate | None:
        for template in self._templates.get(len(message), ()):
            if template.matches(message):
                if self._credit < MAX_CREDIT:
                    self._credit += 1
                return template
        return None

    def remember(
        self, message: bytes, parsed: Message, data: Sequence[bytes]
    ) -> MessageTemplate | None:
        """Make a template of a valid message; `data` are those of its tensors, none of them empty.

        None if that does not pay, or if the bytes in the places of the data mean more than that.
        """
        if self._credit <= 0 or not data:
            return None
        if len(message) - sum([len(each) for each in data]) > MAX_TEMPLATE_BYTES:
            return None
        self._credit -= 1
        spans = list(find_fields(message, self._path))
        if [message[start:stop] for start, stop in spans] != list(data):
            return None
        if not self._only_data_differs(message, parsed, spans):
            return None
        if self._count >= MAX_TEMPLATES:
            self._templates.clear()
            self._count = 0
        template = MessageTemplate(message, spans)
        same_size = self._templates.setdefault(len(message), [])
        if len(same_size) < MAX_TEMPLATES_PER_LENGTH:
            self._count += 1
        else:
            del same_size[0]
        same_size.append(template)
        return template

    def _only_data_differs(
        self, message: bytes, parsed: Message, spans: Sequence[tuple[int, int]]
    ) -> bool:
        """Return whether other bytes in these spans change only the data of a parsed message."""
        inverted = bytearray(message)
        for start, stop in spans:
            inverted[start:stop] = bytes([byte ^ 0xFF for byte in message[start:stop]])
        reparsed = self._parse(bytes(inverted))
        serialized = bytearray(reparsed.SerializeToString(deterministic=True))
        original = parsed.SerializeToString(deterministic=True)
        data_spans = list(find_fields(bytes(serialized), self._path))
        if len(data_spans) != len(spans) or len(serialized) != len(original):
            return False
        for (start, stop), (source_start, source_stop) in zip(data_spans, spans, strict=True):
            if bytes(serialized[start:stop]) != bytes(inverted[source_start:source_stop]):
                return False
            serialized[start:stop] = message[source_start:source_stop]
        return bytes(serialized) == original


class InputSample(NamedTuple):
    """One input of a parsed request, with its data as they are in the message."""

    name: str
    dtype: DataType
    shape: tuple[int, ...]
    data: bytes


class PreparedRequest(NamedTuple):
    """The common part of all requests of a template at one model, to which it does not refer."""

    inputs: Sequence[tuple[str, np.dtype[Any], tuple[int, ...]]]
    rows: int
    group: Hashable
    response_writer: ResponseWriter
    priority: Priority


class FastPath:
    """The fast path of one type of message.

    `resolve` returns the model of a `model_key` that was given to `remember`.
    """

    def __init__(
        self,
        parse: Callable[[bytes], Message],
        path: tuple[int, ...],
        resolve: Callable[..., Model],
    ) -> None:
        self._templates = TemplateCache(parse, path)
        self._resolve = resolve
        # By the id of the model: cheaper than a WeakKeyDictionary, and freed with the model too,
        # as nothing in a PreparedRequest refers to that.
        self._prepared: dict[int, dict[MessageTemplate, PreparedRequest]] = {}

    def send(
        self,
        message: bytes,
        responder: Responder,
        retry: Callable[[], object],
        accepts: Callable[[Model], bool] | None = None,
        adapt: Callable[[ResponseWriter], ResponseWriter] | None = None,
    ) -> int | None:
        """Submit a message that matches a template.

        `retry` submits it the slow way if another version replaces the model meanwhile; `accepts`
        says whether the model is acceptable; `adapt` makes this message's response writer of
        that of the template.

        Returns:
            The expected bytes of the response; None if the message must be parsed: it matches
            no template, or its model is not loaded, is another version now or is not accepted.
        """
        template = self._templates.lookup(message)
        if template is None:
            return None
        started = time.monotonic()
        match = self.lookup_prepared(template)
        if match is None or (accepts is not None and not accepts(match[0])):
            return None
        model, prepared = match
        inputs = {}
        for (name, dtype, shape), (start, stop) in zip(
            prepared.inputs, template.spans, strict=True
        ):
            count = (stop - start) // dtype.itemsize
            inputs[name] = np.frombuffer(message, dtype, count, start).reshape(shape)
        writer = prepared.response_writer
        submission = Submission(
            model,
            responder,
            writer if adapt is None else adapt(writer),
            started,
            inputs,
            prepared.rows,
            prepared.group,
            responder.deadline,
            prepared.priority,
            len(message),
        )
        send(submission, partial(self._resolve, *template.model_key), retry)
        return writer.expected_bytes(prepared.rows)

    def lookup(self, message: bytes) -> MessageTemplate | None:
        return self._templates.lookup(message)

    def lookup_prepared(self, template: MessageTemplate) -> tuple[Model, PreparedRequest] | None:
        """Return the model of a template and the request prepared for it, None if there is none."""
        try:
            model = self._resolve(*template.model_key)
        except NeuronaError:
            return None
        prepared = self._prepared_by_template(model).get(template)
        return None if prepared is None else (model, prepared)

    def remember(
        self,
        message: bytes,
        parsed: Message,
        model_key: tuple[Any, ...],
        inputs: Sequence[InputSample],
        accepted: AcceptedRequest,
    ) -> None:
        """Prepare the next messages like this one.

        Does nothing if the data of an array are not in the message as they are in memory, or if
        an optional input is given: such a request shares a run with no other.
        """
        if len(inputs) > len(accepted.model.signature.inputs):
            return
        dtypes = [NUMPY_DTYPES[sample.dtype] for sample in inputs]
        if any(dtype.kind in "Ob" for dtype in dtypes) or not all(s.data for s in inputs):
            return
        template = self._templates.lookup(message)
        if template is None:
            template = self._templates.remember(message, parsed, [s.data for s in inputs])
            if template is None:
                return
            template.model_key = model_key
        arrays = [(s.name, dtype, s.shape) for s, dtype in zip(inputs, dtypes, strict=True)]
        by_template = self._prepared_by_template(accepted.model)
        if len(by_template) >= MAX_TEMPLATES:  # most of its templates are in the cache no more
            by_template.clear()
        by_template[template] = PreparedRequest(
            arrays, accepted.rows, accepted.group, accepted.response_writer, accepted.priority
        )

    def _prepared_by_template(self, model: Model) -> dict[MessageTemplate, PreparedRequest]:
        by_template = self._prepared.get(id(model))
        if by_template is None:
            by_template = self._prepared[id(model)] = {}
            weakref.finalize(model, self._prepared.pop, id(model)).atexit = False
        return by_template
