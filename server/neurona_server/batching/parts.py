"""A request with more rows than one run takes: run in parts, answered as one."""

import logging
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from neurona_server.batching.request import Array, Inputs, Outputs, Request, not_by_rows
from neurona_server.batching.trace import Trace
from neurona_server.errors import CancelledError, ModelFailedError, NeuronaError

log = logging.getLogger(__name__)


def split_request(request: Request, max_rows: int) -> list[Request]:
    """Requests of at most `max_rows` each, that end the given one when the last has ended.

    The first part that fails fails the whole, and takes the other parts out of the queue;
    so does a whole that is cancelled.
    """
    if request.rows <= max_rows:
        return [request]
    return _Parts(request, max_rows).parts


class _Part(Request):
    """Known by the request that it is a part of."""

    __slots__ = ("_whole",)

    def __init__(self, *request: Any, whole: Request) -> None:
        super().__init__(*request)
        self._whole = whole

    @property
    def trace(self) -> Trace | None:
        return self._whole.trace

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        return self._whole.log_fields


class _Parts:
    def __init__(self, whole: Request, max_rows: int) -> None:
        self._whole = whole
        self._outputs: dict[Request, Outputs] = {}
        self._lock = threading.Lock()  # parts may end in several instances at once
        self.parts = [
            self._part(start, min(start + max_rows, whole.rows))
            for start in range(0, whole.rows, max_rows)
        ]
        whole.place = self

    def leave(self, _: Request) -> None:
        self._cancel_parts()

    def _part(self, start: int, stop: int) -> Request:
        whole = self._whole
        uncut = not_by_rows(whole.group)
        inputs: Inputs = {
            name: array if name in uncut else array[start:stop]
            for name, array in whole.inputs.items()
        }
        rows = stop - start
        nbytes = whole.nbytes * rows // whole.rows
        return _Part(
            inputs,
            rows,
            whole.group,
            self._done,
            whole.deadline,
            whole.priority,
            nbytes,
            whole=whole,
        )

    def _done(self, part: Request, outputs: Outputs | None, error: NeuronaError | None) -> None:
        if outputs is None:
            if self._whole.fail(error or ModelFailedError()):
                self._cancel_parts()
            return
        with self._lock:
            self._outputs[part] = outputs
            if len(self._outputs) < len(self.parts):
                return
        ordered = [self._outputs[part] for part in self.parts]
        try:
            joined: list[Array] = [np.concatenate(arrays) for arrays in zip(*ordered, strict=True)]
        except ValueError:  # outputs whose other axes depend on the data
            log.exception(
                "the parts of a request gave outputs that do not fit together",
                extra=self._whole.log_fields,
            )
            self._whole.fail(ModelFailedError())
        else:
            self._whole.succeed(joined)

    def _cancel_parts(self) -> None:
        for part in self.parts:
            part.cancel(CancelledError("another part of the request ended it"))
