"""The series of sessions: those of recurrent models, whose state the server keeps for callers.

The file is alone because `metrics.py` holds the series of all models.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

EvictionReason = Literal["idle", "full", "unloaded"]
"""Why a server ends a session: nobody has used it for long, others need its place, or its version
is unloaded."""


class SessionMetrics:
    """The series, in the given registry."""

    def __init__(self, registry: CollectorRegistry, version_labels: Sequence[str]) -> None:
        self.open_sessions = Gauge(
            "neurona_sessions_open",
            "Sessions that are open, of models with a state.",
            version_labels,
            registry=registry,
        )
        self.steps = Counter(
            "neurona_session_steps",
            "Steps of sequences that sessions have answered.",
            version_labels,
            registry=registry,
        )
        self.evictions = Counter(
            "neurona_sessions_evicted",
            "Sessions that the server has ended, by reason: idle (longer than "
            "session_idle_timeout_s), full (one idle longest of the token with most, when there "
            "were max_sessions), unloaded (its version, after session_drain_seconds).",
            (*version_labels, "reason"),
            registry=registry,
        )

    @property
    def version_series(self) -> tuple[Gauge | Counter, ...]:
        """Those that end with a version."""
        return (self.open_sessions, self.steps, self.evictions)


class VersionSessionMetrics:
    """The series of one model version, with their labels looked up once.

    A session may end after its version is released: no label is looked up then, which would add
    the series again.
    """

    def __init__(self, metrics: SessionMetrics, name: str, version: str) -> None:
        self.open_sessions = metrics.open_sessions.labels(name, version)
        self.steps = metrics.steps.labels(name, version)
        self.evictions = {
            reason: metrics.evictions.labels(name, version, reason)
            for reason in get_args(EvictionReason)
        }
