"""What happened between two looks at the metrics page, model by model."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from neurona_client.commands.scraped import Labels, Page, increase, quantile

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
