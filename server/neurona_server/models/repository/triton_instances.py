"""Reads instance_group of config.pbtxt: how many instances of a model there are, and on what.

Source of the fields and their meaning: Triton's model configuration,
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto. There, too,
a group has its count on each of its GPUs.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from neurona_protos import model_config_pb2 as triton
from neurona_server.errors import LoadError
from neurona_server.models.repository.triton_accelerators import Accelerators

MAX_INSTANCES = 64

_Group = triton.ModelInstanceGroup


@dataclass(frozen=True)
class Instances:
    """What instance_group says; None for what it does not."""

    count: int | None = None
    """On each device."""

    providers: tuple[str, ...] | None = None
    devices: str | None = None
    by_gpu: Mapping[int, int] = field(default_factory=dict)
    """On the GPUs, by number, if there are not equally many on each."""

    ignored: tuple[str, ...] = ()
    """Paths of the fields without an effect."""


def read_instances(config: triton.ModelConfig, accelerators: Accelerators) -> Instances:
    """Read instance_group, and which providers it needs together with the accelerators.

    A model runs on one kind of device: of groups on several kinds, those on the best one count.

    Raises:
        LoadError: A number is out of range.
    """
    _check_groups(config.instance_group)
    groups = [(f"instance_group[{index}]", one) for index, one in enumerate(config.instance_group)]
    ignored = [f"{path}.gpus" for path, one in groups if one.gpus and _kind(one) != _Group.KIND_GPU]
    active = [(path, group) for path, group in groups if not group.passive]
    if not active:
        providers = _providers(_Group.KIND_AUTO, accelerators)
        return Instances(None, providers, ignored=tuple(ignored))
    # The best is a GPU; else the CPU is only what was meant if no group leaves it open.
    kinds = {_kind(group) for _, group in active}
    order = (_Group.KIND_GPU, _Group.KIND_AUTO, _Group.KIND_MODEL, _Group.KIND_CPU)
    best = min(kinds, key=order.index)
    ignored += [path for path, group in active if _kind(group) != best]
    count, by_gpu = _count([group for _, group in active if _kind(group) == best])
    if count > MAX_INSTANCES:
        raise LoadError(f"instance_group has {count} instances (expected at most {MAX_INSTANCES})")
    if best == _Group.KIND_CPU and accelerators.gpu:
        ignored.append("optimization.execution_accelerators.gpu_execution_accelerator")
    elif best != _Group.KIND_CPU and accelerators.cpu:
        ignored.append("optimization.execution_accelerators.cpu_execution_accelerator")
    devices = ",".join(map(str, sorted(by_gpu))) or None
    if len(set(by_gpu.values())) == 1:
        by_gpu = {}
    return Instances(count, _providers(best, accelerators), devices, by_gpu, tuple(ignored))


def _providers(
    kind: triton.ModelInstanceGroup.Kind, accelerators: Accelerators
) -> tuple[str, ...] | None:
    """Return the providers for instances of a kind, None for those of the server."""
    if kind == _Group.KIND_CPU:
        return (*accelerators.cpu, "cpu")
    if kind == _Group.KIND_GPU or accelerators.gpu:
        return tuple(dict.fromkeys([*accelerators.gpu, "cuda", "cpu"]))
    return None


def _check_groups(groups: Iterable[triton.ModelInstanceGroup]) -> None:
    for index, group in enumerate(groups):
        where = f"instance_group[{index}]"
        if group.count < 0:
            raise LoadError(f"{where}.count is {group.count} (expected at least 0)")
        if group.kind not in _Group.Kind.values():
            raise LoadError(f"{where}.kind is {group.kind}, an unknown kind")
        if min(group.gpus, default=0) < 0:
            raise LoadError(f"{where}.gpus has {min(group.gpus)} (expected at least 0)")


def _kind(group: triton.ModelInstanceGroup) -> triton.ModelInstanceGroup.Kind:
    """Return where the instances of a group run: if it names GPUs, there."""
    if group.kind == _Group.KIND_AUTO and group.gpus:
        return _Group.KIND_GPU
    return group.kind


def _count(groups: Sequence[triton.ModelInstanceGroup]) -> tuple[int, dict[int, int]]:
    """Return how many instances there are on a device at most, and by GPU if groups name some.

    A group without GPUs is on those that other groups name, else on those of the server's option.
    """
    anywhere, by_gpu = 0, Counter[int]()
    for group in groups:
        if group.gpus and _kind(group) == _Group.KIND_GPU:
            by_gpu.update(dict.fromkeys(group.gpus, max(1, group.count)))
        else:
            anywhere += max(1, group.count)
    by_gpu.update(dict.fromkeys(by_gpu, anywhere))
    return max(by_gpu.values(), default=anywhere), dict(by_gpu)
