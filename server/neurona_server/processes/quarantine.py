"""Decides which model to quarantine after crashes of workers: what new workers do not load.

A model is quarantined after the second crash for which it may be to blame. Where the crashed thread
is known, that is the model that it ran. Otherwise all models that ran are suspected, and of those
suspected most often the one with the fewest runs is blamed: a model that ran at each crash because
it always runs has many runs without one.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from neurona_server.telemetry.run_journal import ModelKey, RunningModel

CRASHES = 2
"""Crashes after which a model is quarantined."""

OUT_OF_MEMORY_SECONDS = 600.0
"""A kill for memory is forgotten after this time: what takes too much at one time only, as with
other models that are busy, should not be unavailable for ever."""


@dataclass(frozen=True)
class Crash:
    """How and when a worker ended, and which models may have caused it."""

    reason: str
    """For example "killed by SIGFPE"."""
    suspects: Sequence[RunningModel]
    time: float
    """Monotonic, in seconds."""
    out_of_memory: bool = False


class Quarantine:
    """The models that new workers do not load. It lasts until the supervisor ends.

    Files that are replaced have another `ModelKey`, and so are not in it.
    """

    def __init__(self) -> None:
        self._crashes: list[tuple[Crash, frozenset[ModelKey]]] = []
        self._reasons: dict[ModelKey, str] = {}

    @property
    def reasons(self) -> Mapping[ModelKey, str]:
        """Why each model is quarantined."""
        return dict(self._reasons)

    def record(self, crash: Crash) -> ModelKey | None:
        """Learn of a crash, and return the model that is quarantined because of it, if any."""
        runs = {model.key: model.runs for model in crash.suspects}
        if not runs or runs.keys() & self._reasons.keys():
            return None  # the crash of a worker that has not been replaced yet
        self._crashes = [
            (one, keys)
            for one, keys in self._crashes
            if not one.out_of_memory or crash.time - one.time < OUT_OF_MEMORY_SECONDS
        ]
        self._crashes.append((crash, frozenset(runs)))
        counts = Counter(key for _, keys in self._crashes for key in keys)
        blamed = max(runs, key=lambda key: (counts[key], -runs[key]))
        if counts[blamed] < CRASHES:
            return None
        reasons = [one.reason for one, keys in self._crashes if blamed in keys]
        # These crashes are explained: they say nothing about what else ran.
        self._crashes = [(one, keys) for one, keys in self._crashes if blamed not in keys]
        loading = all(one.loading for one in crash.suspects if one.key == blamed)
        self._reasons[blamed] = (
            f"quarantined: the server process was {_join(reasons)} while it "
            f"{'was loaded' if loading else 'ran'} (replace its files or restart the server to try "
            "again)"
        )
        return blamed


def _join(reasons: Sequence[str]) -> str:
    first, second = reasons[-CRASHES:]
    return f"{first} twice" if first == second else f"{first} and {second}"
