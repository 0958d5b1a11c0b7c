"""The series of batches of sequences, of models that read sequences.

The file is alone since only such models have them.
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter


class SequenceMetrics:
    """The series, in the given registry."""

    def __init__(self, registry: CollectorRegistry, version_labels: Sequence[str]) -> None:
        self.steps = Counter(
            "neurona_sequence_steps",
            "Steps of sequences run, summed over rows, padding excluded.",
            version_labels,
            registry=registry,
        )
        self.padding_steps = Counter(
            "neurona_sequence_padding_steps",
            "Padding steps run beside them, since sequences of different lengths shared a run.",
            version_labels,
            registry=registry,
        )

    @property
    def version_series(self) -> tuple[Counter, ...]:
        """Those that end with a version."""
        return (self.steps, self.padding_steps)


class VersionSequenceMetrics:
    """The series of one model version, with their labels looked up once."""

    def __init__(self, metrics: SequenceMetrics, name: str, version: str) -> None:
        self._steps = metrics.steps.labels(name, version)
        self._padding_steps = metrics.padding_steps.labels(name, version)

    def record_run(self, run_steps: int, own_steps: int) -> None:
        """Count the steps of a run.

        Args:
            run_steps: All that the model ran, summed over rows.
            own_steps: Those among them of requests.
        """
        self._steps.inc(own_steps)
        self._padding_steps.inc(run_steps - own_steps)
