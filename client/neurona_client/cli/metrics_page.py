"""The metrics page of a server, and rates of each model between two readings of it."""

import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException

from neurona_client.cli.arguments import CommandError

Labels = tuple[tuple[str, str], ...]
Series = dict[str, dict[Labels, float]]
"""Values by name of the sample, then by its labels, sorted."""

LabelFilter = Callable[[dict[str, str]], bool]

MAX_PAGE_BYTES = 64 << 20
ERROR_OUTCOMES = ("rejected", "expired", "invalid", "failed")

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}


@dataclass(frozen=True)
class MetricsPage:
    """One reading of the page; `time` is when, in seconds of monotonic time."""

    time: float
    series: Series = field(repr=False)

    def values(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        """Iterate over the samples of a name that have all these labels."""
        wanted = labels.items()
        for key, value in self.series.get(name, {}).items():
            sample_labels = dict(key)
            if wanted <= sample_labels.items():
                yield sample_labels, value

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of these samples."""
        return sum(value for _, value in self.values(name, **labels))


def read_metrics_page(address: str, timeout: float) -> MetricsPage:
    """Read the page of a server.

    Args:
        address: HOST:PORT of the metrics.
        timeout: seconds.

    Raises:
        CommandError: the page cannot be read.
    """
    url = f"http://{address}/metrics"
    # No proxy: the server is nearby, and the proxies of the environment are for the internet.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as response:
            text = response.read(MAX_PAGE_BYTES).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        raise CommandError(f"cannot read {url}: HTTP status {error.code}") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        text = getattr(reason, "strerror", None) or str(reason)
        raise CommandError(f"cannot read {url}: {text}") from error
    return MetricsPage(time.monotonic(), parse_metrics(text.splitlines()))


def parse_metrics(lines: Iterable[str]) -> Series:
    """Parse Prometheus' text format; lines that are not samples are skipped."""
    series: Series = {}
    for line in lines:
        match = None if line.startswith("#") else _SAMPLE.match(line)
        if match is None:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        labels = [(name, _unescape(text)) for name, text in _LABEL.findall(match[2] or "")]
        series.setdefault(match[1], {})[tuple(sorted(labels))] = value
    return series


def _unescape(text: str) -> str:
    return re.sub(r'\\[n"\\]', lambda escape: _ESCAPES[escape[0]], text)


def increase(before: float, after: float) -> float:
    """Return the increase of a counter, which restarts at 0 with its server."""
    return after - before if after >= before else after


def quantile(share: float, buckets: dict[float, float]) -> float:
    """Estimate a quantile of a histogram like Prometheus: uniform inside a bucket.

    Args:
        share: 0 to 1.
        buckets: cumulative count by upper bound.

    Returns:
        NaN without counts; the last finite bound for what lies beyond it.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return math.nan
    rank, lower_bound, lower_count = share * total, 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank:
            if math.isinf(bound):
                return lower_bound
            in_bucket = count - lower_count
            position = (rank - lower_count) / in_bucket if in_bucket else 1.0
            return lower_bound + (bound - lower_bound) * position
        lower_bound, lower_count = bound, count
    return lower_bound


@dataclass(frozen=True)
class ModelRates:
    """What one version of a model did between two readings; NaN where that is unknown.

    Attributes:
        model: its name.
        version: its number.
        state: such as "ready".
        requests: per second.
        errors: per second.
        batch: mean rows of a batch.
        queue: rows in the queue.
        p50: median latency in seconds.
        p99: 99th percentile of the latency in seconds.
    """

    model: str
    version: str
    state: str
    requests: float = math.nan
    errors: float = math.nan
    batch: float = math.nan
    queue: float = math.nan
    p50: float = math.nan
    p99: float = math.nan


def compute_rates(before: MetricsPage | None, now: MetricsPage) -> list[ModelRates]:
    """Compare two readings.

    Args:
        before: the earlier one; None: rates are unknown, and quantiles and batch sizes are those
            since the start of the server.
        now: the later one.

    Returns:
        One for each version of each model, sorted.
    """
    versions = {
        (labels["model"], labels["version"])
        for series in ("neurona_version_state", "neurona_model_info", "neurona_queue_rows")
        for labels, _ in now.values(series)
        if labels.get("model") and "version" in labels
    }
    return [
        _rates_of_version(model, version, before, now)
        for model, version in sorted(versions, key=_sort_key)
    ]


def _sort_key(version: tuple[str, str]) -> tuple[str, int]:
    return version[0], int(version[1]) if version[1].isdecimal() else 0


def _rates_of_version(
    model: str, version: str, before: MetricsPage | None, now: MetricsPage
) -> ModelRates:
    name = {"model": model, "version": version}
    seconds = now.time - before.time if before else math.nan

    def total_increase(series: str, accept: LabelFilter = bool) -> float:  # bool: all have labels
        return sum(
            increase(_value_before(before, series, labels), value)
            for labels, value in now.values(series, **name)
            if accept(labels)
        )

    requests = "neurona_requests_total"
    ok = total_increase(requests, lambda labels: labels.get("outcome") == "ok")
    errors = total_increase(requests, lambda labels: labels.get("outcome") in ERROR_OUTCOMES)
    rows = total_increase("neurona_batch_rows_sum")
    runs = total_increase("neurona_batch_rows_count")
    buckets: dict[float, float] = {}
    series = "neurona_request_duration_seconds_bucket"
    for labels, value in now.values(series, **name):
        try:
            bound = float(labels.get("le", ""))
        except ValueError:  # of another program
            continue
        count = increase(_value_before(before, series, labels), value)
        buckets[bound] = buckets.get(bound, 0.0) + count
    states = [
        labels.get("state", "")
        for labels, value in now.values("neurona_version_state", **name)
        if value
    ]
    return ModelRates(
        model,
        version,
        states[0] if states else "ready",
        (ok + errors) / seconds,
        errors / seconds,
        rows / runs if runs else math.nan,
        now.total("neurona_queue_rows", **name),
        quantile(0.5, buckets),
        quantile(0.99, buckets),
    )


def _value_before(before: MetricsPage | None, series: str, labels: dict[str, str]) -> float:
    if before is None:
        return 0.0
    return before.series.get(series, {}).get(tuple(sorted(labels.items())), 0.0)
