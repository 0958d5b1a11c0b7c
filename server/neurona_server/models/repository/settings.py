"""What a model's folder says about the model, beside the versions: model.toml or config.pbtxt.

Every field has a default that means that nothing is said.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from neurona_protos.prediction_pb2 import DataType, Task

MODEL_TOML = "model.toml"
CONFIG_PBTXT = "config.pbtxt"
LATEST = "latest"
"""The label that is built in: the highest version that is ready."""

_LATEST = re.compile(r"latest(?: +([1-9][0-9]{0,8}))?")

VersionOrLabel = int | str
"""A version, or the label of one; "" where nothing is said."""


@dataclass(frozen=True)
class VersionPolicy:
    """Which of the versions on disk are served."""

    latest: int = 1
    """The highest so many, unless the others say otherwise."""

    every: bool = False
    listed: tuple[int, ...] = ()

    def choose(self, on_disk: Collection[int]) -> set[int]:
        """A listed version that is not there is not chosen."""
        if self.every:
            return set(on_disk)
        if self.listed:
            return set(self.listed) & set(on_disk)
        return set(sorted(on_disk)[-self.latest :])

    @classmethod
    def parse(cls, value: object) -> "VersionPolicy":
        """From "all", "latest", "latest 2" or [1, 3]. Raises ValueError."""
        if value == "all":
            return cls(every=True)
        if isinstance(value, str) and (match := _LATEST.fullmatch(value)):
            return cls(latest=int(match[1] or 1))
        if isinstance(value, list) and value and all(type(n) is int and n > 0 for n in value):
            return cls(listed=tuple(sorted(set(value))))
        raise ValueError('expected "all", "latest", "latest N" or a list of versions')


@dataclass(frozen=True)
class Traffic:
    """Where requests go that name neither version nor label."""

    default: VersionOrLabel = ""
    """What answers those that no share takes."""

    shares: Mapping[VersionOrLabel, float] = field(default_factory=dict)
    """Percent of them, by version or label."""

    shadow: VersionOrLabel = ""
    """What gets a copy of what is answered; its answers are compared and thrown away."""

    shadow_share: float = 100.0
    """Percent of what is answered that is copied."""


@dataclass(frozen=True)
class ValueSettings:
    """One column of a regression's answer."""

    name: str = ""
    unit: str = ""


@dataclass(frozen=True)
class TensorSettings:
    """Of an input or an output; `axes` has a name for each axis, "" for one without."""

    axes: tuple[str, ...] = ()
    description: str = ""
    unit: str = ""


@dataclass(frozen=True)
class DeclaredTensor:
    """An input or output as config.pbtxt declares it, to be compared with the graph.

    `shape` has all axes, the batch axis too; -1 is one of free size.
    """

    role: str
    """input or output."""

    name: str
    dtype: DataType
    """DATA_TYPE_UNDEFINED where it is not said."""

    shape: tuple[int, ...] | None
    """None where it is not said."""


@dataclass(frozen=True)
class WarmUpInput:
    """How one input of a warm-up sample is made: zeros, random values, or a file's bytes.

    It is made when it is needed, so that two readings of the same folder compare as equal.
    """

    dtype: DataType
    shape: tuple[int, ...]
    random: bool = False
    file: Path | None = None
    rows: int = 0
    """The size of the batch axis, 0 if there is none: a file may hold a single row."""


@dataclass(frozen=True)
class WarmUpSample:
    """A request that is run `count` times at load; when it fails, the load fails."""

    name: str
    count: int
    inputs: Mapping[str, WarmUpInput]


@dataclass(frozen=True)
class ModelSettings:
    task: Task | None = None
    answer: str = ""
    """The output that holds the answer."""

    labels: tuple[str, ...] = ()
    softmax: bool = False
    """The answer holds logits."""

    values: tuple[ValueSettings, ...] = ()
    description: str = ""
    inputs: Mapping[str, TensorSettings] = field(default_factory=dict)
    outputs: Mapping[str, TensorSettings] = field(default_factory=dict)
    batched: bool | None = None
    """None: found out by running it."""

    versions: VersionPolicy | None = None
    version_labels: Mapping[str, int] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)

    # In the place of the server's options of the same names.
    max_batch_rows: int | None = None
    max_queue_rows: int | None = None
    max_queue_bytes: int | None = None
    max_delay_ms: float | None = None
    latency_objective_ms: float | None = None
    inline: str | None = None
    instances: int | None = None
    threads: int | None = None
    providers: tuple[str, ...] | None = None

    # What only config.pbtxt says.
    model_file: str = ""
    """In the folder of a version; "" is model.onnx."""

    declared: tuple[DeclaredTensor, ...] = ()
    output_labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The names of classes, by output: a hint where the task is not said."""

    warm_up: tuple[WarmUpSample, ...] = ()
    ignored: tuple[str, ...] = ()
    """Paths of the fields that are set and have no effect here, for the log."""
