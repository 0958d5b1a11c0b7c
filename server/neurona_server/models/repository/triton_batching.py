"""Reads max_batch_size and dynamic_batching of a config.pbtxt, or the batches of sequence_batching.

The times, priorities and limits of its queue are Triton's, in requests and by the numbers of its
priorities: 1 is the most urgent.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from neurona_protos import model_config_pb2 as triton
from neurona_server.batching.policy import QueuePolicies, QueuePolicy
from neurona_server.errors import LoadError

_MAX_MICROSECONDS = 10**11


@dataclass(frozen=True)
class TritonBatching:
    """The batching of a config; None stands for a setting that the config leaves out."""

    batched: bool | None = None
    max_delay_ms: float | None = None
    preferred_rows: tuple[int, ...] = ()
    queue_policies: QueuePolicies | None = None
    preserve_order: bool = False


def read_batching(config: triton.ModelConfig, *, batch_axis_known: bool) -> TritonBatching:
    """Read dynamic_batching, or the strategy of sequence_batching.

    With `batch_axis_known`, the model has a batch axis if and only if max_batch_size is above 0.

    Raises:
        LoadError: A value is out of its range.
    """
    limit = config.max_batch_size
    batched = None
    kind = config.WhichOneof("scheduling_choice")
    if limit and kind in ("dynamic_batching", "sequence_batching"):
        batched = True
    elif not limit and batch_axis_known:
        batched = False
    if kind == "sequence_batching":
        return _read_strategy(config.sequence_batching, limit, batched)
    if kind != "dynamic_batching":
        return TritonBatching(batched)
    batching = config.dynamic_batching
    delay = batching.max_queue_delay_microseconds
    _check_microseconds("dynamic_batching.max_queue_delay_microseconds", delay)
    _check_preferred("dynamic_batching", batching.preferred_batch_size, limit)
    return TritonBatching(
        batched,
        delay / 1000 if limit else None,
        tuple(sorted(set(batching.preferred_batch_size))) if limit else (),
        _queue_policies(batching),
        batching.preserve_ordering,
    )


def _read_strategy(
    batching: triton.ModelSequenceBatching, limit: int, batched: bool | None
) -> TritonBatching:
    """Read `direct` or `oldest`: how long and for which sizes a batch of steps waits."""
    name = batching.WhichOneof("strategy_choice")
    strategy = batching.oldest if name == "oldest" else batching.direct
    delay = strategy.max_queue_delay_microseconds
    _check_microseconds(f"sequence_batching.{name}.max_queue_delay_microseconds", delay)
    preferred = batching.oldest.preferred_batch_size
    _check_preferred("sequence_batching.oldest", preferred, limit)
    return TritonBatching(
        batched,
        delay / 1000 if limit else None,
        tuple(sorted(set(preferred))) if limit else (),
        preserve_order=batching.oldest.preserve_ordering,
    )


def _check_preferred(where: str, sizes: Iterable[int], limit: int) -> None:
    for size in sizes:
        if limit and not 0 < size <= limit:
            raise LoadError(
                f"{where}.preferred_batch_size has {size} (expected sizes from 1 to "
                f"max_batch_size, {limit})"
            )


def _queue_policies(batching: triton.ModelDynamicBatching) -> QueuePolicies | None:
    count, default = batching.priority_levels, batching.default_priority_level
    if (count or default) and not 0 < default <= count:
        raise LoadError(
            f"dynamic_batching.default_priority_level is {default} (expected 1 to "
            f"priority_levels, {count})"
        )
    by_number = {}
    for number, policy in sorted(batching.priority_queue_policy.items()):
        where = f"priority_queue_policy[{number}]"
        if not 0 < number <= count:
            raise LoadError(
                f"dynamic_batching.{where} has no priority (expected 1 to priority_levels, {count})"
            )
        by_number[number] = _queue_policy(where, policy)
    default_policy = _queue_policy("default_queue_policy", batching.default_queue_policy)
    if not count and default_policy == QueuePolicy():
        return None
    return QueuePolicies(default_policy, by_number, count, default)


def _queue_policy(where: str, policy: triton.ModelQueuePolicy) -> QueuePolicy:
    microseconds = policy.default_timeout_microseconds
    _check_microseconds(f"dynamic_batching.{where}.default_timeout_microseconds", microseconds)
    if policy.timeout_action not in triton.ModelQueuePolicy.TimeoutAction.values():
        raise LoadError(
            f"dynamic_batching.{where}.timeout_action is {policy.timeout_action}, an unknown action"
        )
    return QueuePolicy(
        microseconds / 1e6,
        policy.timeout_action == triton.ModelQueuePolicy.DELAY,
        policy.allow_timeout_override,
        policy.max_queue_size,
    )


def _check_microseconds(where: str, value: int) -> None:
    if value > _MAX_MICROSECONDS:
        raise LoadError(f"{where} is {value} (expected at most {_MAX_MICROSECONDS})")
