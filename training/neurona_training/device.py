"""Where a network is trained, and in which precision."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch


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
