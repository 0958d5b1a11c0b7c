"""Interfaces of tracing for the rest of the server, and the caller's W3C Trace Context.

`telemetry.spans` implements the protocols with OpenTelemetry, which nothing here imports. Where
tracing is off there is no tracer, and the `trace` of a request is None.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

MAX_TRACEPARENT = 512
"""Characters of a traceparent: OpenTelemetry accepts no more either."""

Metadata = Iterable[tuple[str, str | bytes]]
"""The metadata of a call: pairs of a lower-case key and a value."""

_TRACEPARENT = re.compile(
    r"(?:00(?=.{53}\Z)|(?!00|ff)[0-9a-f]{2})-"  # version 0 has nothing after its flags
    r"(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?"
)


class Trace(Protocol):
    """The trace that a request belongs to."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits, as in W3C Trace Context."""


class TracedRequest(Protocol):
    """The part of a request to a model that tracing reads. Times are of the monotonic clock."""

    @property
    def trace(self) -> Trace | None:
        """The trace of the request, None if it is not traced."""

    @property
    def rows(self) -> int: ...

    @property
    def count(self) -> int:
        """The number of callers' requests that it combines."""

    @property
    def queued_at(self) -> float:
        """The time of its admission to the queue, 0 before."""

    @property
    def dequeued_at(self) -> float:
        """The time at which it left the queue to run, 0 before."""


class CallTrace(Trace, Protocol):
    """The trace of a call, or of one request in a stream. Thread-safe; raises nothing."""

    def start_request(self, number: int) -> "CallTrace":
        """Start the trace of a request in this stream; `number` distinguishes it from others."""

    def record_outcome(
        self,
        request: TracedRequest,
        model: str,
        version: int,
        error: Exception | None,
        run_rows: int = 0,
    ) -> None:
        """Record how the request to a model ended, before the caller has its response.

        `run_rows` are the rows of all requests of its run, 0 if they are unknown.
        """

    def end(self, error: Exception | None = None) -> None:
        """End the trace, because the response was sent or the caller has disconnected.

        Only the first call counts.
        """


class CallTracer(Protocol):
    """Decides which calls are traced and starts their traces. Raises nothing."""

    def should_sample(self, metadata: Metadata) -> bool:
        """Return whether a call with this metadata is to be traced."""

    def start_call(self, path: str, metadata: Metadata) -> CallTrace:
        """Start the trace of a sampled call."""


class RunTimes(NamedTuple):
    """The times of one run, in seconds of the batcher's (monotonic) clock."""

    batch_started: float
    run_started: float
    run_finished: float
    batch_finished: float


class BatchTracer(Protocol):
    """Traces the batches of one model. Raises nothing; ignores requests without a trace."""

    def record_queue_times(self, batch: Sequence[TracedRequest]) -> None:
        """Record the time in the queue of requests that have left it as one batch."""

    def record_run(
        self, batch: Sequence[TracedRequest], rows: int, padded: int, times: RunTimes
    ) -> None:
        """Record a successful run of `rows`, padded to `padded`, before responses are written."""

    def record_failed_run(
        self, batch: Sequence[TracedRequest], started: float, error: Exception
    ) -> None:
        """Record a run that began at `started` and failed; its requests may run again."""


class BatchTracerFactory(Protocol):
    """Makes the tracer of a model version."""

    def __call__(self, model: str, version: int, provider: str) -> BatchTracer: ...


def parent_of(metadata: Metadata) -> tuple[str, bool] | None:
    """Return the caller's trace id and whether its trace is sampled, from a `traceparent` header.

    Returns None if the header is absent, invalid or repeated (W3C Trace Context, section 3.2).
    """
    values = [value for key, value in metadata if key == "traceparent"]
    if len(values) != 1 or len(value := values[0]) > MAX_TRACEPARENT or not isinstance(value, str):
        return None
    match = _TRACEPARENT.fullmatch(value)
    return (match[1], bool(int(match[2], 16) & 1)) if match else None
