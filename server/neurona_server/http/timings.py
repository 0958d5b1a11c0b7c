"""How long a request waited and ran, and in how large a batch, for the header Server-Timing.

The file is alone because a call that is not traced otherwise has this as its trace: what a trace
learns of a request is all that is needed.
"""

import time

from neurona_server.telemetry.trace import TracedRequest


class CallTimings:
    """The times of one call (`telemetry.trace.CallTrace`), which belongs to no trace."""

    trace_id = ""

    def __init__(self, entries: dict[str, str]) -> None:
        """Write the times to `entries`, as parameters of Server-Timing by their names."""
        self._entries = entries

    def start_request(self, number: int) -> "CallTimings":  # noqa: ARG002  of a stream
        return self

    def record_outcome(
        self,
        request: TracedRequest,
        model: str,  # noqa: ARG002
        version: int,  # noqa: ARG002
        error: Exception | None,
        run_rows: int = 0,
    ) -> None:
        """Record the time in the queue, from there to the response, and the rows of the run."""
        now = time.monotonic()
        if request.queued_at:
            dequeued_at = request.dequeued_at or now
            self._entries["queue"] = _duration(dequeued_at - request.queued_at)
            if request.dequeued_at and error is None:
                self._entries["run"] = _duration(now - dequeued_at)
                if run_rows:
                    self._entries["batch"] = f"desc={run_rows}"

    def end(self, error: Exception | None = None) -> None:
        """Do nothing: the entries are complete."""


def _duration(seconds: float) -> str:
    return f"dur={1000 * max(0.0, seconds):.3f}"
