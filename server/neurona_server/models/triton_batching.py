"""How config.pbtxt has requests joined, and on how many instances they run."""

from dataclasses import dataclass

from neurona_protos import model_config_pb2 as triton
from neurona_server.errors import LoadError

MOST_INSTANCES = 64
_MOST_DELAY_US = 10**11
_Kind = triton.ModelInstanceGroup


@dataclass(frozen=True)
class Batching:
    """None is not said."""

    batched: bool | None = None
    max_delay_ms: float | None = None
    max_queue_rows: int | None = None


def read_batching(config: triton.ModelConfig, *, told: bool) -> Batching:
    """`told` says that the config tells whether there is a batch axis: it has one if
    max_batch_size is above 0. Raises LoadError.
    """
    if not config.max_batch_size:
        return Batching(batched=False if told else None)
    if not config.HasField("dynamic_batching"):
        return Batching()
    said = config.dynamic_batching
    delay = said.max_queue_delay_microseconds
    if delay > _MOST_DELAY_US:
        raise LoadError(
            f"dynamic_batching.max_queue_delay_microseconds is {delay}; "
            f"expected at most {_MOST_DELAY_US}"
        )
    rows = min(said.default_queue_policy.max_queue_size, 2**31 - 1)
    return Batching(True, delay / 1000, rows or None)


def read_instances(
    config: triton.ModelConfig,
) -> tuple[int | None, tuple[str, ...] | None, list[str]]:
    """How many there are, the providers they run on, and the fields that have no effect.

    Of groups on several kinds of devices, those on the best one are read: a model runs on one.
    Raises LoadError.
    """
    groups = list(config.instance_group)
    ignored = []
    for index, group in enumerate(groups):
        if group.count < 0:
            raise LoadError(f"instance_group[{index}].count is {group.count}; expected at least 0")
        if group.kind not in _Kind.Kind.values():
            raise LoadError(f"instance_group[{index}].kind is {group.kind}, which is not known")
        if [*group.gpus] not in ([], [0]):
            ignored.append(f"instance_group[{index}].gpus")
    active = [(index, group) for index, group in enumerate(groups) if not group.passive]
    if not active:
        return None, None, ignored
    kinds = {group.kind for _, group in active}
    best = _Kind.KIND_GPU if _Kind.KIND_GPU in kinds else _Kind.KIND_CPU
    if len(kinds) > 1:
        if _Kind.KIND_GPU not in kinds:
            best = next(kind for kind in kinds if kind != _Kind.KIND_CPU)
        ignored += [f"instance_group[{index}]" for index, one in active if one.kind != best]
    else:
        (best,) = kinds
    count = sum(max(1, group.count) for _, group in active if group.kind == best)
    if count > MOST_INSTANCES:
        raise LoadError(
            f"instance_group asks for {count} instances; expected at most {MOST_INSTANCES}"
        )
    providers = {_Kind.KIND_CPU: ("cpu",), _Kind.KIND_GPU: ("cuda", "cpu")}.get(best)
    return count, providers, ignored
