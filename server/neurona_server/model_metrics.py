"""The series of one version of one model: what the rooms of the server write into."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from neurona_server.tally import Tally
from neurona_server.watched import WatchedCurve, WatchedQueue

if TYPE_CHECKING:
    from neurona_server.metrics import Metrics

OUTCOMES = ("ok", "rejected", "expired", "cancelled", "invalid", "failed")


class ModelMetrics:
    """The series of one version of one model, looked up once."""

    def __init__(self, metrics: "Metrics", name: str, version: str, tally: Tally) -> None:
        self._metrics = metrics
        self._labels = (name, version)
        self.tally = tally
        self.outcomes = outcomes_of(metrics.requests, name, version)
        self._request_seconds = metrics.request_seconds.series(
            *self._labels, self.outcomes["ok"].inc
        )
        self.terminated = metrics.terminated.labels(*self._labels)
        self.inline = metrics.inline.labels(*self._labels)
        self._rows = metrics.rows.labels(*self._labels)
        self._padding_rows = metrics.padding_rows.labels(*self._labels)
        self._batch_rows = metrics.batch_rows.labels(*self._labels)
        self._batch_requests = metrics.batch_requests.labels(*self._labels)
        self._queue_seconds = metrics.queue_seconds.series(*self._labels)
        self._run_seconds = metrics.run_seconds.labels(*self._labels)
        self._run_ratio = metrics.run_ratio.labels(*self._labels)
        self._warm_up_seconds = metrics.warm_up_seconds.labels(name)

    def watch(self, queue: WatchedQueue, curve: WatchedCurve) -> None:
        labels = self._labels
        self._metrics.queue_rows.labels(*labels).set_function(lambda: queue.rows)
        self._metrics.queue_age.labels(*labels).set_function(queue.oldest_age)
        self._metrics.queue_bytes.labels(*labels).set_function(lambda: queue.nbytes)
        self._metrics.queue_limit.labels(*labels).set_function(lambda: queue.max_rows)
        self._metrics.batch_limit.labels(*labels).set_function(lambda: queue.limit)
        # What it replaces may have had other rungs.
        self._forget(self._metrics.predicted_seconds)
        for rung in curve.rungs:
            gauge = self._metrics.predicted_seconds.labels(*labels, str(rung))
            gauge.set_function(partial(_seconds_of, curve, rung))

    def warmed_up(self, seconds: float) -> None:
        """Its first runs, before it served."""
        self._warm_up_seconds.observe(seconds)

    def ready(self, task: str, provider: str) -> None:
        self._forget(self._metrics.info)
        self._metrics.info.labels(*self._labels, task, provider).set(1)

    def shadowed(self, outcome: str) -> None:
        self._metrics.shadowed(*self._labels, outcome)

    def release(self) -> None:
        self._metrics.release(*self._labels)

    def placed(self, nodes: Mapping[str, int], degraded: bool) -> None:
        """Which provider runs how many nodes."""
        self._forget(self._metrics.nodes)  # what it replaces may have run elsewhere
        for provider, count in nodes.items():
            self._metrics.nodes.labels(*self._labels, provider).set(count)
        self._metrics.degraded.labels(*self._labels).set(degraded)

    def _forget(self, series: Gauge) -> None:
        name, version = self._labels
        series.remove_by_labels({"model": name, "version": version})

    def waited(self, waits: Sequence[float]) -> None:
        """How long each request of a batch had waited when it was cut."""
        self._queue_seconds.observe_all(waits)

    @property
    def answered(self) -> tuple[int, float]:
        """Requests that were ok, and their seconds altogether."""
        return self._request_seconds.total

    @property
    def queued(self) -> tuple[int, float]:
        """Requests that have left the queue, and the seconds that they had spent in it."""
        return self._queue_seconds.total

    def ended(self, outcome: str, seconds: float) -> None:
        """One request, from its bytes to its answer's or its error."""
        if outcome == "ok":  # counted as it is sorted
            self._request_seconds.observe(seconds)
        else:
            self.tally.failed(seconds)
            self.outcomes[outcome].inc()

    def exemplify(self, seconds: float, trace_id: str) -> None:
        """A request that was ok, and took so long, has a trace."""
        self._request_seconds.exemplify(seconds, trace_id)

    def ran(
        self,
        rows: int,
        requests: int,
        padding: int,
        seconds: tuple[float, float, float],
        predicted: float,
    ) -> None:
        """One run of `rows` and `padding`, with its seconds for the join, the run itself and the
        split; 0.0 if none were foretold."""
        self.tally.ran(rows, requests, *seconds)
        self._rows.inc(rows)
        self._batch_rows.observe(rows)
        self._batch_requests.observe(requests)
        joined_and_run = seconds[0] + seconds[1]
        self._run_seconds.observe(joined_and_run)
        if padding:
            self._padding_rows.inc(padding)
        if predicted:
            self._run_ratio.observe(joined_and_run / predicted)


def _seconds_of(curve: WatchedCurve, rung: int) -> float:
    return curve.seconds.get(rung, math.nan)


def outcomes_of(requests: Counter, name: str, version: str) -> dict[str, Counter]:
    return {outcome: requests.labels(name, version, outcome) for outcome in OUTCOMES}
