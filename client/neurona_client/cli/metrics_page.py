"""What happened between two looks at the metrics page, model by model."""

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
"""By the sample's name, then by its labels, sorted."""

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}
MAX_BYTES = 64 << 20


@dataclass(frozen=True)
class Page:
    """at: when it was read, in seconds of the monotonic clock."""

    at: float
    series: Series = field(repr=False)

    def values(self, name: str, **labels: str) -> Iterator[tuple[dict[str, str], float]]:
        wanted = labels.items()
        for key, value in self.series.get(name, {}).items():
            own = dict(key)
            if wanted <= own.items():
                yield own, value

    def total(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.values(name, **labels))


def scrape(address: str, timeout: float) -> Page:
    """Raises CommandError when there is no such page."""
    url = f"http://{address}/metrics"
    # No proxy: the page is a neighbour's, and proxies of the environment are for the web.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as answer:
            text = answer.read(MAX_BYTES).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        raise CommandError(f"{url} answers with status {error.code}") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        said = getattr(reason, "strerror", None) or str(reason)
        raise CommandError(f"{url} cannot be read: {said}") from error
    return Page(time.monotonic(), parse(text.splitlines()))


def parse(lines: Iterable[str]) -> Series:
    """Lines that are no samples are passed over."""
    series: Series = {}
    for line in lines:
        found = None if line.startswith("#") else _SAMPLE.match(line)
        if found is None:
            continue
        try:
            value = float(found[3])
        except ValueError:
            continue
        labels = [(name, _unescaped(text)) for name, text in _LABEL.findall(found[2] or "")]
        series.setdefault(found[1], {})[tuple(sorted(labels))] = value
    return series


def _unescaped(text: str) -> str:
    return re.sub(r'\\[n"\\]', lambda one: _ESCAPED[one[0]], text)


def increase(before: float, after: float) -> float:
    """Of a counter, which begins anew at 0 when its server does."""
    return after - before if after >= before else after


def quantile(share: float, buckets: dict[float, float]) -> float:
    """Of a histogram's counts up to each bound, as Prometheus estimates it: even inside a
    bucket. NaN without counts; the last finite bound for what lies beyond it."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0.0
    if total <= 0:
        return math.nan
    rank, low, below = share * total, 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank:
            if math.isinf(bound):
                return low
            inside = count - below
            return low + (bound - low) * ((rank - below) / inside if inside else 1.0)
        low, below = bound, count
    return low


Wanted = Callable[[dict[str, str]], bool]
EVERY: Wanted = bool  # no series is without labels
ERRORS = ("rejected", "expired", "invalid", "failed")


@dataclass(frozen=True)
class Rates:
    """Of one version of one model. Without a look before there is nothing to compare with:
    then rates are NaN. Seconds; rows."""

    model: str
    version: str
    state: str
    requests: float = math.nan
    errors: float = math.nan
    batch: float = math.nan
    queue: float = math.nan
    p50: float = math.nan
    p99: float = math.nan


def rates(before: Page | None, now: Page) -> list[Rates]:
    """Without `before`, quantiles and batch sizes are of all time and rates unknown."""
    names = {
        (own["model"], own["version"])
        for series in ("neurona_version_state", "neurona_model_info", "neurona_queue_rows")
        for own, _ in now.values(series)
        if own.get("model")
    }
    return [_of_one(model, version, before, now) for model, version in sorted(names, key=_order)]


def _order(name: tuple[str, str]) -> tuple[str, int]:
    return name[0], int(name[1]) if name[1].isdecimal() else 0


def _of_one(model: str, version: str, before: Page | None, now: Page) -> Rates:
    name = {"model": model, "version": version}
    seconds = now.at - before.at if before else math.nan
    ok = _grown(before, now, "neurona_requests_total", lambda own: own.get("outcome") == "ok", name)
    bad = _grown(
        before, now, "neurona_requests_total", lambda own: own.get("outcome") in ERRORS, name
    )
    rows = _grown(before, now, "neurona_batch_rows_sum", EVERY, name)
    runs = _grown(before, now, "neurona_batch_rows_count", EVERY, name)
    buckets: dict[float, float] = {}
    series = "neurona_request_duration_seconds_bucket"
    for own, value in now.values(series, **name):
        earlier = before.series.get(series, {}).get(_key(own), 0.0) if before else 0.0
        bound = float(own["le"])
        buckets[bound] = buckets.get(bound, 0.0) + increase(earlier, value)
    states = [own["state"] for own, value in now.values("neurona_version_state", **name) if value]
    return Rates(
        model,
        version,
        states[0] if states else "ready",
        (ok + bad) / seconds,
        bad / seconds,
        rows / runs if runs else math.nan,
        now.total("neurona_queue_rows", **name),
        quantile(0.5, buckets),
        quantile(0.99, buckets),
    )


def _grown(
    before: Page | None,
    now: Page,
    series: str,
    wanted: Wanted,
    name: dict[str, str],
) -> float:
    grown = 0.0
    for own, value in now.values(series, **name):
        if wanted(own):
            earlier = before.series.get(series, {}).get(_key(own), 0.0) if before else 0.0
            grown += increase(earlier, value)
    return grown


def _key(own: dict[str, str]) -> Labels:
    return tuple(sorted(own.items()))
