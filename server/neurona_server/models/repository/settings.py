"""The settings of a model that model.toml or config.pbtxt in its folder may contain.

The default of each field means that the file does not set it.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from neurona_protos.prediction_pb2 import DataType, Task
from neurona_server.batching.policy import QueuePolicies
from neurona_server.sequences.sequence_batching import SequenceBatching

MODEL_TOML = "model.toml"
CONFIG_PBTXT = "config.pbtxt"
LATEST = "latest"
"""The built-in label of the highest loaded version."""

_DEVICE = re.compile("[0-9]{1,4}|(?:GPU|MIG)-[0-9a-f-]{1,36}", re.IGNORECASE)
_LATEST = re.compile(r"latest(?: +([1-9][0-9]{0,8}))?")

VersionOrLabel = int | str
"""A version number, or a label; "" if unset."""


@dataclass(frozen=True)
class VersionPolicy:
    """Which of the versions on disk are served."""

    latest: int = 1
    """Number of the highest versions to serve, unless one of the other fields is set."""

    all_versions: bool = False
    listed: tuple[int, ...] = ()

    def choose(self, on_disk: Collection[int]) -> set[int]:
        """Return the versions to serve; a listed version that does not exist is left out."""
        if self.all_versions:
            return set(on_disk)
        if self.listed:
            return set(self.listed) & set(on_disk)
        return set(sorted(on_disk)[-self.latest :])

    @classmethod
    def parse(cls, value: object) -> "VersionPolicy":
        """Parse "all", "latest", "latest 2" or [1, 3].

        Raises:
            ValueError: `value` is none of these.
        """
        if value == "all":
            return cls(all_versions=True)
        if isinstance(value, str) and (match := _LATEST.fullmatch(value)):
            return cls(latest=int(match[1] or 1))
        if isinstance(value, list) and value and all(type(n) is int and n > 0 for n in value):
            return cls(listed=tuple(sorted(set(value))))
        raise ValueError('expected "all", "latest", "latest N" or a list of versions')


def parse_devices(text: str) -> str:
    """Return "all", or numbers and UUIDs of CUDA devices with a comma between them.

    Raises:
        ValueError: `text` is none of these. Whether there are such devices, the driver says.
    """
    names = [name.strip() for name in text.split(",")]
    if names != ["all"] and not all(map(_DEVICE.fullmatch, names)):
        raise ValueError('expected "all", or numbers or UUIDs with commas, like "0,1"')
    return ",".join(names)


@dataclass(frozen=True)
class Traffic:
    """Routing of the requests that name neither a version nor a label."""

    default: VersionOrLabel = ""
    """Target of the requests that no share takes."""

    shares: Mapping[VersionOrLabel, float] = field(default_factory=dict)
    """Percentage of the requests, by version or label."""

    shadow: VersionOrLabel = ""
    """Target of copies of answered requests; its outputs are compared and discarded."""

    shadow_share: float = 100.0
    """Percentage of the answered requests that are copied to the shadow."""


@dataclass(frozen=True)
class ValueSettings:
    """Name and unit of one column of a regression's output."""

    name: str = ""
    unit: str = ""


@dataclass(frozen=True)
class ImageSettings:
    """How encoded images become an input: see ImageDescription; "" and 0 are guessed."""

    layout: str = ""
    """hw, chw or hwc."""

    colours: str = ""
    """grey, rgb or bgr."""

    width: int = 0
    height: int = 0
    resize: str = ""
    """fit, stretch or shorter-side."""

    filter: str = ""
    """box, bilinear or bicubic."""

    shorter_side: int = 0
    inversion: str = ""
    """never, always or bright-border."""

    range: tuple[float, ...] = (0.0, 255.0)
    """The values of black and white."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class TensorSettings:
    """Settings of an input or output; `axes` names each axis, "" for an axis without a name."""

    axes: tuple[str, ...] = ()
    description: str = ""
    unit: str = ""
    allow_nan: bool | None = None
    """Whether requests may have NaN; None: as the model's file says."""

    allow_unknown: bool | None = None
    """Whether requests may have strings that are no category; None: as the model's file says."""

    image: ImageSettings | None = None
    """How encoded images become the input; None: as the model's file says."""


@dataclass(frozen=True)
class DeclaredTensor:
    """An input or output as config.pbtxt declares it, to be compared with the graph."""

    role: str
    """input or output."""

    name: str
    dtype: DataType
    """DATA_TYPE_UNDEFINED if undeclared."""

    shape: tuple[int, ...] | None
    """All axes including the batch axis, -1 for a free size; None if undeclared."""

    graph_shape: tuple[int, ...] | None = None
    """The shape in the graph if it is declared as another one, with as many free sizes."""


@dataclass(frozen=True)
class WarmUpInput:
    """Source of one input of a warm-up sample: zeros, random values, or the bytes of a file.

    The array is made when it is needed, so that settings read twice compare equal.
    """

    dtype: DataType
    shape: tuple[int, ...]
    random: bool = False
    file: Path | None = None
    rows: int = 0
    """Size of the batch axis, 0 if there is none: the file may hold a single row."""


@dataclass(frozen=True)
class WarmUpSample:
    """A request that is run `count` times when the model is loaded; an error fails the load."""

    name: str
    count: int
    inputs: Mapping[str, WarmUpInput]


@dataclass(frozen=True)
class ModelSettings:
    """Everything that a model's folder may say about the model."""

    task: Task | None = None
    answer: str = ""
    """Name of the output that holds the classification or regression."""

    labels: tuple[str, ...] = ()
    softmax: bool = False
    """Whether that output holds logits."""

    values: tuple[ValueSettings, ...] = ()
    description: str = ""
    inputs: Mapping[str, TensorSettings] = field(default_factory=dict)
    outputs: Mapping[str, TensorSettings] = field(default_factory=dict)
    batched: bool | None = None
    """None: determined by running the model."""

    versions: VersionPolicy | None = None
    version_labels: Mapping[str, int] = field(default_factory=dict)
    traffic: Traffic = field(default_factory=Traffic)

    # Overrides of the server's options of the same names.
    max_batch_rows: int | None = None
    max_queue_rows: int | None = None
    max_queue_bytes: int | None = None
    max_delay_ms: float | None = None
    latency_objective_ms: float | None = None
    inline: str | None = None
    sequence_batching: str | None = None
    """How sequences of different lengths share runs, None as the server's option says."""

    max_run_seconds: float | None = None
    instances: int | None = None
    threads: int | None = None
    providers: tuple[str, ...] | None = None
    devices: str | None = None
    provider_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Values by the provider's short name and key; they override single ones of the server's."""

    # Set by config.pbtxt only.
    preferred_batch_rows: tuple[int, ...] = ()
    queue_policies: QueuePolicies | None = None
    preserve_order: bool = False
    """Whether responses are delivered in the order in which their requests came."""

    instances_by_gpu: Mapping[int, int] = field(default_factory=dict)
    """Instances on those of `devices` that have another number of them than `instances`."""

    has_batch_axis: bool = False
    """Whether axis 0 is the batch axis, also if requests do not share runs."""

    model_file: str = ""
    """File name in a version's folder; "" is model.onnx."""

    declared: tuple[DeclaredTensor, ...] = ()
    sequences: SequenceBatching | None = None
    """The control inputs and states of sequences, if the model has any by its config.pbtxt."""

    output_labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of classes by output, "" for a class without one: a hint when no task is set."""

    warm_up: tuple[WarmUpSample, ...] = ()
    ignored: tuple[str, ...] = ()
    """Paths of the fields that are set but have no effect, for the log."""

    triton_config: bytes = b""
    """The serialized ModelConfig that the file holds, for callers who ask for it."""
