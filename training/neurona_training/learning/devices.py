"""Several processes that train one network, started by torchrun.

    torchrun --nproc-per-node 2 --max-restarts 1 -m neurona_training.cli.pipeline lenet5

Each process has the whole data and the same weights; of every batch it takes its own rows,
and the gradients are averaged over the processes before each step.
"""

import contextlib
import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed.nn  # its defaults would hold a group that is there when it is imported
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Device:
    """half: the 16-bit type of the large products; None keeps all of it in float32."""

    place: torch.device
    half: torch.dtype | None = None

    def autocast(self) -> AbstractContextManager[object]:
        return torch.amp.autocast(self.place.type, dtype=self.half, enabled=self.half is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps small gradients from becoming 0 in float16; bfloat16 has float32's range."""
        return torch.amp.GradScaler(self.place.type, enabled=self.half is torch.float16)


def best() -> Device:
    """The GPU of this process with mixed precision, when there is one; else the CPU."""
    if not torch.cuda.is_available():
        return Device(torch.device("cpu"))
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(place)
    torch.backends.cudnn.deterministic = True  # same seed, same weights
    return Device(place, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


T = TypeVar("T")


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the other processes, when torchrun has started this one: its variables say so."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    # torchrun keeps one store through its restarts, with the addresses of dead processes in
    # it (torch 2.13): each start has its own keys there.
    store, rank_, size_ = next(rendezvous("env://"))
    distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(f"start {_restarts()}", store),
        rank=rank_,
        world_size=size_,
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()
        # DistributedDataParallel holds the group in a cycle. Only when nothing holds it are its
        # threads joined, and one that still frees a tensor while Python exits aborts the process.
        gc.collect()


def was_restarted() -> bool:
    """Whether torchrun has started this process again after one was lost."""
    return _restarts() > 0


def size() -> int:
    """How many processes there are; 1 without torchrun."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0. The first one validates, writes and talks."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def wrapped(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with gradients that are averaged over all processes; itself if alone."""
    if size() == 1 or not any(parameter.requires_grad for parameter in network.parameters()):
        return network
    return DistributedDataParallel(
        network, device_ids=[device.index] if device.type == "cuda" else None
    )


def own_part(rows: int) -> tuple[slice, float]:
    """Which of a batch's rows are this process's, and what their mean loss counts for.

    The mean over processes of weight * mean loss is the mean loss over the batch, also where
    the rows cannot be dealt out evenly. A process without a row takes one for nothing, since
    all have to take part in the averaging.
    """
    own = len(range(rank(), rows, size()))
    return (slice(rank(), None, size()), own * size() / rows) if own else (slice(1), 0.0)


def mean(number: Tensor) -> Tensor:
    """The mean over all processes, in place."""
    if size() > 1:
        distributed.all_reduce(number)
    return number.div_(size())


def from_first(numbers: Tensor) -> Tensor:
    """What the first process has there, in place."""
    if size() > 1:
        distributed.broadcast(numbers, 0)
    return numbers


def object_from_first(value: T) -> T:
    """The first process's value, in every process."""
    values = [value]
    if size() > 1:
        distributed.broadcast_object_list(values, 0)
    return values[0]


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
