"""What the page of metrics reads of the server at the moment when it is scraped."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

VERSION = ("model", "version")


class WatchedQueue(Protocol):
    """What gauges read when they are scraped."""

    limit: int

    @property
    def rows(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def max_rows(self) -> int: ...
    def oldest_age(self) -> float: ...


class WatchedCurve(Protocol):
    """Likewise."""

    @property
    def rungs(self) -> Sequence[int]: ...
    @property
    def seconds(self) -> dict[int, float]: ...


@dataclass(frozen=True)
class KnownVersion:
    """One version of one model, as the page has it at the moment when it is read."""

    model: str
    version: int
    state: str
    labels: Sequence[str] = ()
    problem: bool = False
    share: float | None = None
    """Of the requests that name neither version nor label, 0 to 1; None if it is not loaded."""


class VersionStates(Collector):
    """Series that are read from what is known when the page is, and never outlive it."""

    def __init__(self, known: Callable[[], Iterable[KnownVersion]]) -> None:
        self._known = known

    def collect(self) -> Iterable[Metric]:
        states = GaugeMetricFamily(
            "neurona_version_state",
            "1 for the state that a version is in.",
            labels=[*VERSION, "state"],
        )
        labels = GaugeMetricFamily(
            "neurona_version_label",
            "1 for each label of a version.",
            labels=[*VERSION, "label"],
        )
        problems = GaugeMetricFamily(
            "neurona_version_problem",
            "1 while a version needs a person: it failed, or its files are not what serves.",
            labels=VERSION,
        )
        shares = GaugeMetricFamily(
            "neurona_version_share_ratio",
            "Share of the requests that name neither version nor label which a version gets.",
            labels=VERSION,
        )
        for one in self._known():
            name = [one.model, str(one.version)]
            states.add_metric([*name, one.state], 1)
            problems.add_metric(name, one.problem)
            for label in one.labels:
                labels.add_metric([*name, label], 1)
            if one.share is not None:
                shares.add_metric(name, one.share)
        return [states, labels, problems, shares]
