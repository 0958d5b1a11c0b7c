"""The pages of several processes as one.

What counts up (counters, histograms) is added up, and the sum never falls as long as a series is
there: what a process has counted stays in it when the process is gone, or when the process
itself has started anew with a series. What is a state (gauges) follows the rule of its name.
"""

import math
from collections.abc import Callable, Iterable, Mapping

from neurona_server.metrics_page import Family, Labels, Page, Series

COUNTS = ("counter", "histogram", "summary")
PROCESS = "process"
"""The label of series that are each process's own."""


def _largest(one: float, other: float) -> float:
    return one if math.isnan(other) else other if math.isnan(one) else max(one, other)


def _smallest(one: float, other: float) -> float:
    return min(one, other)


def _sum(one: float, other: float) -> float:
    return one + other


Rule = Callable[[float, float], float]

RULES: Mapping[str, Rule] = {
    "neurona_queue_rows": _sum,
    "neurona_queue_bytes": _sum,
    "neurona_queue_limit_rows": _sum,
    "neurona_queue_oldest_seconds": _largest,
    "neurona_version_loading_seconds": _largest,
    "neurona_open_streams": _sum,
    "neurona_serving": _sum,
    "process_resident_memory_bytes": _sum,
    "process_virtual_memory_bytes": _sum,
    "neurona_memory_limit_bytes": _largest,
    "process_open_fds": _largest,
    "process_max_fds": _smallest,
    "process_start_time_seconds": _smallest,
    # The same in each process, or true of the whole as soon as it is true of one.
    "neurona_model_info": _largest,
    "neurona_model_nodes": _largest,
    "neurona_model_degraded": _largest,
    "neurona_door_info": _largest,
    "neurona_version_state": _largest,
    "neurona_version_label": _largest,
    "neurona_version_problem": _largest,
    "neurona_version_share_ratio": _largest,
    "neurona_build_info": _largest,
    # All look at the same GPUs, at slightly different times.
    "neurona_gpu_utilization_ratio": _largest,
    "neurona_gpu_memory_used_bytes": _largest,
    "neurona_gpu_memory_total_bytes": _largest,
    "neurona_gpu_power_watts": _largest,
}
"""How gauges are merged. One that is not here has the number of its process as a label: what a
process has measured itself, like the cost of runs, is no other's."""

OF_EACH_PROCESS = ("neurona_run_predicted_seconds", "neurona_batch_limit_rows", "neurona_inline")
"""For whoever adds a gauge: it stands here or in RULES (a test looks)."""

ALSO_OF_EACH: Mapping[str, str] = {
    "process_resident_memory_bytes": "neurona_process_resident_memory_bytes",
    "process_cpu_seconds": "neurona_process_cpu_seconds",
}
"""What is not only merged: by which name each process has it for itself, too."""


class Merged:
    """Sums over pages that are replaced, again and again. Not safe for threads."""

    def __init__(self) -> None:
        self._pages: dict[object, tuple[str, Page]] = {}
        self._past: Page = {}

    def replace(self, key: object, process: str, page: Page) -> None:
        """The newest page of who has that key; `process` is the label of its own gauges."""
        self._keep(self._pages.get(key, ("", {}))[1], page)
        self._pages[key] = process, page

    def remove(self, key: object) -> None:
        """It is gone; what it has counted stays."""
        self._keep(self._pages.pop(key, ("", {}))[1], {})

    def forget_versions(self) -> None:
        """What was counted for models and versions that no process knows any more. As in a single
        process, their series go with them."""
        known = {
            version
            for _, page in self._pages.values()
            for family in page.values()
            for labels in family.series
            if (version := _version(labels))
        }
        for family in self._past.values():
            for labels in list(family.series):
                version = _version(labels)
                if version and version not in known:
                    del family.series[labels]

    def page(self) -> Page:
        total: Page = {}
        for process, page in self._pages.values():
            for name, family in page.items():
                if own := ALSO_OF_EACH.get(name):
                    _add_own(total, name, own, family, process)
                merged = total.setdefault(name, Family(family.text, family.kind))
                if family.kind in COUNTS:
                    _merge(merged, family, _sum)
                elif rule := RULES.get(name):
                    _merge(merged, family, rule)
                else:
                    _add_own(total, name, name, family, process)
        for name, family in self._past.items():
            _merge(total.setdefault(name, Family(family.text, family.kind)), family, _sum)
        return total

    def _keep(self, old: Page, new: Page) -> None:
        """What was counted in series that have ended, or begun again, since."""
        for name, family in old.items():
            if family.kind not in COUNTS:
                continue
            now = new[name].series if name in new else {}
            ended = {
                labels: series
                for labels, series in family.series.items()
                if _has_fallen(series, now.get(labels, {}))
            }
            if ended:
                past = self._past.setdefault(name, Family(family.text, family.kind))
                _merge(past, Family(family.text, family.kind, ended), _sum)


def _add_own(total: Page, name: str, new_name: str, family: Family, process: str) -> None:
    """A process's own series, with its number as a label."""
    own = total.setdefault(new_name, Family(family.text, family.kind))
    for labels, series in family.series.items():
        renamed = {
            (new_name + sample.removeprefix(name), bound): value
            for (sample, bound), value in series.items()
        }
        own.series[tuple(sorted((*labels, (PROCESS, process))))] = renamed


def _merge(into: Family, family: Family, rule: Rule) -> None:
    for labels, series in family.series.items():
        own = into.series.setdefault(labels, {})
        for point, value in series.items():
            own[point] = rule(own[point], value) if point in own else value
    for place, exemplar in family.exemplars.items():  # the newest is shown
        other = into.exemplars.get(place, exemplar)
        into.exemplars[place] = max(exemplar, other, key=lambda one: one[2])


def _has_fallen(old: Series, new: Series) -> bool:
    """Looked at together: buckets of which some are added up and some are not would not be
    cumulative any more."""
    return any(new.get(point, -math.inf) < value for point, value in old.items())


def _version(labels: Iterable[tuple[str, str]]) -> Labels:
    """The labels that name a model or one of its versions; () if they do not, or name none."""
    return tuple(item for item in labels if item[0] in ("model", "version") and item[1])
