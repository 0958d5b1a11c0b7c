"""What deep networks for colour photographs have in common: how an image gets into them."""

import torch
from torch import Tensor, nn

SMALL = 16  # pixels; a stem made for photographs would shrink a smaller image to nothing


class Colours(nn.Module):
    """Images in a caller's units -> (rows, 3, height, width) near 0.

    (rows, height, width) or (rows, channel, height, width), of one or three channels. Grey is
    shown to all three colours, so that the network behind is the published one.
    """

    def __init__(self, normalise: nn.Module) -> None:
        super().__init__()
        self.normalise = normalise

    def forward(self, images: Tensor) -> Tensor:
        x = self.normalise(images)
        if x.ndim == 3:
            x = x.unsqueeze(1)
        return x if x.shape[1] == 3 else torch.cat([x, x, x], dim=1)


class Unit(nn.Sequential):
    """Convolution without bias, batch normalisation (S. Ioffe and C. Szegedy, 2015), ReLU.

    size: of the kernel, one number or height and width. same: padded so that only the stride
    makes the map smaller.
    """

    def __init__(
        self,
        seen: int,
        maps: int,
        size: int | tuple[int, int],
        stride: int = 1,
        *,
        same: bool = True,
        bend: bool = True,
        epsilon: float = 1e-5,
    ) -> None:
        height, width = (size, size) if isinstance(size, int) else size
        padding = (height // 2, width // 2) if same else (0, 0)
        convolution = nn.Conv2d(seen, maps, (height, width), stride, padding, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(convolution, nn.BatchNorm2d(maps, epsilon))
        if bend:
            self.append(nn.ReLU())


def pooled(x: Tensor) -> Tensor:
    """The mean of each map: (rows, maps, height, width) -> (rows, maps)."""
    return x.mean(dim=(2, 3))
