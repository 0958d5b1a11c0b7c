"""Coalesces requests of a stream that match one template, so that they run as one request."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Protocol, cast

import numpy as np

from neurona_server.batching.batch import RowSlice
from neurona_server.batching.batcher import Defer
from neurona_server.batching.policy import Priority
from neurona_server.batching.request import Inputs, Outputs, Request
from neurona_server.errors import ModelFailedError, NeuronaError
from neurona_server.models.model import Model
from neurona_server.rpc.call import RequestIdentity, log_fields_of
from neurona_server.rpc.fast_path import FastPath, MessageTemplate, PreparedRequest
from neurona_server.rpc.submission import cancel
from neurona_server.rpc.v1.responses import PredictResponseWriter

REQUESTS_PER_BATCH = 2
"""Coalesced requests that fill a batch: larger ones would leave more of it empty."""


class CoalescedResponder(RequestIdentity, Protocol):
    """Delivers the responses to coalesced requests, in order.

    Exactly one of `reply`, `fail` and `halve` is called, from any thread.
    """

    @property
    def deadline(self) -> float: ...

    @property
    def arrived(self) -> float:
        """See `Responder.arrived`."""

    @property
    def defer(self) -> Defer:
        """See `Call.defer`."""

    def reply(self, responses: Sequence[bytes | NeuronaError]) -> None: ...

    def fail(self, error: Exception) -> None: ...

    def halve(self, middle: int) -> tuple["CoalescedResponder", "CoalescedResponder"]:
        """Return two replacements: for the first `middle` requests, and for the others."""

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Set the `callback` to call when the responses are no longer needed."""


class CoalescedRequest(Request):
    """`count` requests of `rows_each` rows that run as one."""

    __slots__ = ("count", "model", "responder", "response_writer", "rows_each", "started")

    def __init__(
        self,
        model: Model,
        responder: CoalescedResponder,
        response_writer: PredictResponseWriter,
        started: float,
        inputs: Inputs,
        count: int,
        rows_each: int,
        group: Hashable,
        priority: Priority,
        nbytes: int,
    ) -> None:
        super().__init__(inputs, count * rows_each, group, responder.deadline, priority, nbytes)
        self.model = model
        self.responder = responder
        self.response_writer = response_writer
        self.started = started
        self.count = count
        self.rows_each = rows_each
        if arrived := responder.arrived:
            self.arrival_lag = started - arrived
        responder.on_cancel(partial(cancel, self))

    @property
    def ranked_classes(self) -> int:
        model = self.model
        return 0 if model.on_answer else self.response_writer.ranked_classes(model.answer)

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        return {**self.model.log_fields, **log_fields_of(self.responder)}

    def finish(self, outputs: Outputs | None, error: NeuronaError | None) -> None:
        """Write and deliver each response, or the error, and record them in the metrics."""
        if outputs is None:
            error = error or ModelFailedError()
            self._record_outcomes([error] * self.count)
            self.responder.fail(error)
            return
        rows = cast(RowSlice, outputs)  # its model is batched, and it is too small to be split
        responses: Sequence[bytes | NeuronaError]
        try:
            responses = self.response_writer.write_each(rows, self.rows_each)
        except Exception:  # one response cannot be written: the others are
            responses = [
                self._write_response(RowSlice(rows.batch, start, self.rows_each))
                for start in range(rows.start, rows.stop, self.rows_each)
            ]
        self._record_outcomes(responses)
        self.responder.reply(responses)

    def halve(self) -> Sequence[Request]:
        if self.count == 1 or not self.withdraw():
            return ()
        middle = self.count // 2
        first, second = self.responder.halve(middle)
        return [self._slice(first, 0, middle), self._slice(second, middle, self.count)]

    def _slice(self, responder: CoalescedResponder, start: int, stop: int) -> "CoalescedRequest":
        rows = slice(start * self.rows_each, stop * self.rows_each)
        inputs = {name: array[rows] for name, array in self.inputs.items()}
        count = stop - start
        return CoalescedRequest(
            self.model,
            responder,
            self.response_writer,
            self.started,
            inputs,
            count,
            self.rows_each,
            self.group,
            self.priority,
            self.nbytes * count // self.count,
        )

    def _write_response(self, outputs: Outputs) -> bytes | NeuronaError:
        try:
            return self.response_writer(outputs)
        except NeuronaError as error:
            return error
        except Exception as bug:
            self.model.batcher.failure_log.record(
                "a response could not be written", bug, self.log_fields
            )
            return ModelFailedError()

    def _record_outcomes(self, responses: Sequence[bytes | NeuronaError]) -> None:
        metrics, seconds = self.model.metrics, time.monotonic() - self.started
        for response in responses:
            if isinstance(response, bytes):
                metrics.record_request("ok", seconds)
            else:
                metrics.record_error(response, seconds)


class RequestGroup:
    """Requests of one template that are collected to be coalesced."""

    def __init__(
        self,
        template: MessageTemplate,
        model: Model,
        prepared: PreparedRequest,
        response_writer: PredictResponseWriter,
    ) -> None:
        self.template = template
        self.model = model
        self.expected_bytes = response_writer.expected_bytes(prepared.rows)
        """The size of each response."""
        max_rows = model.batcher.queue.max_batch_rows // REQUESTS_PER_BATCH
        self.max_requests = max_rows // prepared.rows
        self.ids: list[int] = []
        self.messages: list[bytes] = []
        self._prepared = prepared
        self._response_writer = response_writer

    def coalesce(self, responder: CoalescedResponder) -> CoalescedRequest:
        """Return one request that combines the collected ones."""
        prepared, messages = self._prepared, self.messages
        count = len(messages)
        inputs = {}
        for (name, dtype, shape), (start, stop) in zip(
            prepared.inputs, self.template.spans, strict=True
        ):
            data = b"".join([message[start:stop] for message in messages])
            inputs[name] = np.frombuffer(data, dtype).reshape(count * shape[0], *shape[1:])
        return CoalescedRequest(
            self.model,
            responder,
            self._response_writer,
            time.monotonic(),
            inputs,
            count,
            prepared.rows,
            prepared.group,
            prepared.priority,
            count * len(messages[0]),
        )


def open_group(fast_path: FastPath, template: MessageTemplate) -> RequestGroup | None:
    """Return a group for requests of a template.

    Returns None if they cannot share a run or must be separate.
    """
    match = fast_path.lookup_prepared(template)
    if match is None:
        return None
    model, prepared = match
    writer = prepared.response_writer
    if (
        not isinstance(writer, PredictResponseWriter)
        or not model.signature.batched
        or not prepared.rows
    ):
        return None
    if model.on_answer is not None:  # a shadow gets and counts a copy of each request
        return None
    group = RequestGroup(template, model, prepared, writer)
    return group if group.max_requests > 1 else None
