"""Where a network is trained: the device and its precision, and several processes.

    torchrun --nproc-per-node 2 --max-restarts 1 -m neurona_training.cli.main lenet5

Each process of torchrun has all data and the same weights; it takes its own rows of every
batch, and the gradients are averaged over the processes before each step. Without torchrun
there is one process, of rank 0.
"""

import contextlib
import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed.nn  # imported late, its defaults would keep the existing group alive
from torch import Tensor, distributed, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Device:
    """Where and in which precision a network is trained.

    half_type: the 16-bit type of large products; None computes everything in float32.
    """

    torch_device: torch.device
    half_type: torch.dtype | None = None

    def autocast(self) -> AbstractContextManager[object]:
        """Computes large products in `half_type` while the context is open."""
        return torch.amp.autocast(
            self.torch_device.type, dtype=self.half_type, enabled=self.half_type is not None
        )

    def gradient_scaler(self) -> torch.amp.GradScaler:
        """Keeps small gradients from becoming 0 in float16; bfloat16 has float32's range."""
        return torch.amp.GradScaler(self.torch_device.type, enabled=self.half_type is torch.float16)


def best_device() -> Device:
    """Returns this process's GPU with mixed precision if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return Device(torch.device("cpu"))
    gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(gpu)
    torch.backends.cudnn.deterministic = True  # same seed, same weights
    return Device(gpu, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Joins torchrun's other processes; does nothing if torchrun did not start this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    # torchrun keeps one store through its restarts, with the addresses of dead processes in
    # it (torch 2.13): each start has its own keys there.
    store, store_rank, store_size = next(rendezvous("env://"))
    distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=PrefixStore(f"start {_restarts()}", store),
        rank=store_rank,
        world_size=store_size,
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()
        # DistributedDataParallel holds the group in a reference cycle. Its threads are joined
        # only when nothing holds it, and a thread that still frees a tensor while Python exits
        # aborts the process.
        gc.collect()


def was_restarted() -> bool:
    """Whether torchrun restarted this process after losing one."""
    return _restarts() > 0


def process_count() -> int:
    """Number of processes that train together; 1 without torchrun."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def process_rank() -> int:
    """Number of this process, from 0; process 0 validates, writes files and prints."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """Wraps the network so that gradients are averaged over all processes.

    Returns:
        The network itself in a single process, or if it has nothing to train.
    """
    trainable = any(parameter.requires_grad for parameter in network.parameters())
    if process_count() == 1 or not trainable:
        return network
    return DistributedDataParallel(
        network, device_ids=[device.index] if device.type == "cuda" else None
    )


def batch_share(rows: int) -> tuple[slice, float]:
    """Selects this process's rows of a batch and the weight of their mean loss.

    The mean over processes of weight * mean loss is the mean loss over the batch, even if the
    rows do not divide evenly. A process without a row gets one with weight 0, because all
    processes must take part in the averaging.
    """
    count = len(range(process_rank(), rows, process_count()))
    if not count:
        return slice(1), 0.0
    return slice(process_rank(), None, process_count()), count * process_count() / rows


def average_in_place(number: Tensor) -> Tensor:
    """Replaces the tensor by its mean over all processes, and returns it."""
    if process_count() > 1:
        distributed.all_reduce(number)
    return number.div_(process_count())


def broadcast_in_place(numbers: Tensor) -> Tensor:
    """Replaces the tensor by that of process 0, and returns it."""
    if process_count() > 1:
        distributed.broadcast(numbers, 0)
    return numbers


def broadcast_object(value: T) -> T:
    """Returns process 0's value, in every process."""
    values = [value]
    if process_count() > 1:
        distributed.broadcast_object_list(values, 0)
    return values[0]


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
