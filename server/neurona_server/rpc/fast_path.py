"""Submits requests without parsing them if an equal one except for tensor data was valid."""

import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.policy import Priority
from neurona_server.errors import NeuronaError
from neurona_server.models.model import Model
from neurona_server.rpc.detached_data import DataPaths, detach_data
from neurona_server.rpc.submission import (
    AcceptedRequest,
    Responder,
    ResponseWriter,
    Submission,
    is_large,
    send,
)
from neurona_server.rpc.worker_pool import WorkerPool

MAX_TEMPLATES = 1024
MAX_TEMPLATES_PER_LENGTH = 16
"""Templates of equally long messages: each such message is compared with all of them."""

MAX_TEMPLATE_BYTES = 8 << 10
"""Bytes of a message without its tensors' data, which are kept."""

MAX_TEMPLATE_FIELDS = 1024
"""Fields of a message of which a template is made."""

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


class DataFields(NamedTuple):
    """Where a type of message has the data of its tensors."""

    paths: DataPaths
    """The fields with the data."""

    indices: Callable[[bytes], list[int | None]]
    """Returns the index of the data of each tensor in a message without its data, in the order of
    the tensors; raises DecodeError."""


class TemplateCache:
    """Templates of one type of message.

    The threads of all transports use it without a lock: each step leaves it in order, and what two
    of them remember at the same time may be remembered twice, or not at all.
    """

    def __init__(self, data: DataFields) -> None:
        self._data = data
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

    def remember(self, message: bytes, count: int) -> MessageTemplate | None:
        """Make a template of a valid message with `count` tensors, each with data.

        None if that does not pay, or if the message is unusual: a tensor has no data or several,
        or data in another place than the others. In all other messages of the same bytes in the
        same places but those of the data, the data are in the same places: their structure is
        read without the data.
        """
        if self._credit <= 0 or not count:
            return None
        self._credit -= 1
        try:
            detached = detach_data(
                message,
                self._data.paths,
                max_fields=MAX_TEMPLATE_FIELDS,
                max_rest_bytes=MAX_TEMPLATE_BYTES,
            )
            indices = self._data.indices(detached.rest)
        except (ValueError, DecodeError):
            return None
        spans = detached.spans
        if indices != list(range(count)) or len(spans) != count:
            return None
        if any(start == stop for start, stop in spans):
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


class InputSample(NamedTuple):
    """One input of a parsed request."""

    name: str
    dtype: DataType
    shape: tuple[int, ...]


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
        self, data: DataFields, resolve: Callable[..., Model], workers: WorkerPool
    ) -> None:
        self._templates = TemplateCache(data)
        self._resolve = resolve
        self._workers = workers
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
        expected_bytes = writer.expected_bytes(prepared.rows)
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
            self._workers if is_large(len(message), expected_bytes) else None,
        )
        send(submission, responder.defer, partial(self._resolve, *template.model_key), retry)
        return expected_bytes

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
        if any(dtype.kind in "Ob" for dtype in dtypes):
            return
        template = self._templates.lookup(message)
        if template is None:
            template = self._templates.remember(message, len(inputs))
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
            weakref.finalize(model, self._prepared.pop, id(model), None).atexit = False
        return by_template
