"""What runs spend before and after the model itself, added up when the page is read.

Only sums and counts: a histogram would cost every run two more observations, and these parts are
small beside the run, which has one.
"""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import SummaryMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from neurona_server.tally import Tally
from neurona_server.watched import VERSION


class RunParts(Collector):
    def __init__(self, tallies: Callable[[], Mapping[tuple[str, str], Tally]]) -> None:
        """`tallies`: of each version, by name and version; a copy."""
        self._tallies = tallies

    def collect(self) -> Iterable[Metric]:
        join = SummaryMetricFamily(
            "neurona_join_duration_seconds",
            "What it took to join the rows of a run's requests.",
            labels=VERSION,
        )
        split = SummaryMetricFamily(
            "neurona_split_duration_seconds",
            "What it took to give each request its rows of the answer, and to send them.",
            labels=VERSION,
        )
        for labels, tally in self._tallies().items():
            runs, joining, splitting = tally.parts()
            join.add_metric(labels, runs, joining)
            split.add_metric(labels, runs, splitting)
        return [join, split]
