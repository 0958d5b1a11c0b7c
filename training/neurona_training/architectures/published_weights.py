"""Weights of published files under the names that the networks have here.

torchvision's names are those of its models vgg16, resnet18, resnet50 and inception_v3; timm's
those of vgg16, resnet18, resnet50, inception_v3 and xception (also called legacy_xception). The
files are dictionaries of tensors by name, as torch.save and safetensors write them.

Photographs were scaled before they reached these networks; `PUBLISHED_SCALES` has how.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from neurona_training.architectures.input_layers import RgbInput
from neurona_training.architectures.resnet import Bottleneck

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class ColourScale:
    """Mean and standard deviation of each colour, of pixels from 0 to 1, that a network expects."""

    mean: tuple[float, float, float]
    spread: tuple[float, float, float]


_IMAGENET = ColourScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_SYMMETRIC = ColourScale((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # -1 to 1

# By recipe. torchvision's inception_v3 takes ImageNet's scale, and turns it into this one first.
PUBLISHED_SCALES = {
    "vgg16": _IMAGENET,
    "resnet18": _IMAGENET,
    "resnet50": _IMAGENET,
    "inception-v3": _SYMMETRIC,
    "xception": _SYMMETRIC,
}


class PublishedInput(nn.Module):
    """Scales images as the photographs were on which a published network was trained.

    Args:
        brightest: the value of a white pixel.
        scale: of the network.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, brightest: float, scale: ColourScale) -> None:
        super().__init__()
        self.rgb = RgbInput(nn.Identity())
        # Of pixels from 0 to `brightest`, so that one subtraction and one product remain.
        mean, spread = torch.tensor(scale.mean), torch.tensor(scale.spread)
        self.register_buffer("mean", (brightest * mean)[:, None, None])
        self.register_buffer("factor", (1 / (brightest * spread))[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Takes (rows, height, width) or (rows, channel, height, width), 1 or 3 channels."""
        scaled: Tensor = (self.rgb(images) - self.mean) * self.factor
        return scaled


def rename_published(recipe: str, state: State, network: nn.Module) -> dict[str, Tensor]:
    """Returns published weights under the names of the network's own.

    Args:
        recipe: one of `PUBLISHED_SCALES`.
        state: tensors by the names of torchvision or timm.
        network: of that recipe, for the places of its layers.

    Returns:
        Tensors by name; those whose name is unknown keep it.
    """
    rename = _RENAMERS[recipe]
    renamed = {}
    for name, tensor in state.items():
        renamed[rename(name, network) or name] = tensor
    if recipe == "vgg16":  # timm has the fully connected layers as convolutions of a whole map
        renamed = {
            name: tensor.flatten(1)
            if name.startswith("classifier.") and tensor.ndim == 4
            else tensor
            for name, tensor in renamed.items()
        }
    return renamed


def _rename_vgg(name: str, network: nn.Module) -> str | None:
    if match := re.fullmatch(r"features\.(\d+)\.(weight|bias)", name):
        # Small images are halved less often, which moves the convolutions behind.
        published = [*accumulate((2, 3, 2, 3, 2, 2, 3, 2, 2, 3, 2, 2), initial=0)]
        stages = network.get_submodule("stages")
        here = [
            index for index, layer in enumerate(stages.children()) if isinstance(layer, nn.Conv2d)
        ]
        index = int(match[1])
        if index in published:
            return f"stages.{here[published.index(index)]}.{match[2]}"
    for theirs, index in (("pre_logits.fc1", 0), ("pre_logits.fc2", 3), ("head.fc", 6)):
        if name.startswith(f"{theirs}."):
            return f"classifier.{index}.{name.rpartition('.')[2]}"
    return None


def _rename_resnet(name: str, network: nn.Module) -> str | None:
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", name):
        stages = network.get_submodule("stages")
        bottleneck = isinstance(stages.get_submodule("0"), Bottleneck)
        blocks = (3, 4, 6, 3) if bottleneck else (2, 2, 2, 2)
        first = sum(blocks[: int(match[1]) - 1])
        rest = re.sub(r"^downsample\.", "shortcut.", match[3])
        rest = re.sub(r"^conv(\d)\.", lambda one: f"change.{int(one[1]) - 1}.0.", rest)
        rest = re.sub(r"^bn(\d)\.", lambda one: f"change.{int(one[1]) - 1}.1.", rest)
        return f"stages.{first + int(match[2])}.{rest}"
    return _replace_prefix(name, {"conv1.": "stem.0.0.", "bn1.": "stem.0.1.", "fc.": "output."})


_INCEPTION_BLOCKS = {
    "Mixed_5b": "grid35.0",
    "Mixed_5c": "grid35.1",
    "Mixed_5d": "grid35.2",
    "Mixed_6a": "grid17.0",
    "Mixed_6b": "grid17.1",
    "Mixed_6c": "grid17.2",
    "Mixed_6d": "grid17.3",
    "Mixed_6e": "grid17.4",
    "Mixed_7a": "grid8.0",
    "Mixed_7b": "grid8.1",
    "Mixed_7c": "grid8.2",
}
_SEVEN_A = {  # the block Mixed_7a has branches of its own
    "branch3x3_1": "0.0",
    "branch3x3_2": "0.1",
    "branch7x7x3_1": "1.0.0",
    "branch7x7x3_2": "1.0.1",
    "branch7x7x3_3": "1.0.2",
    "branch7x7x3_4": "1.1",
}
_SIX_A = {
    "branch3x3": "0",
    "branch3x3dbl_1": "1.0",
    "branch3x3dbl_2": "1.1",
    "branch3x3dbl_3": "1.2",
}
_OTHER_BRANCHES = {
    "branch1x1": "0",
    "branch5x5_1": "1.0",
    "branch5x5_2": "1.1",
    "branch7x7_1": "1.0",
    "branch7x7_2": "1.1",
    "branch7x7_3": "1.2",
    "branch3x3_1": "1.0",
    "branch3x3_2a": "1.1.ways.0",
    "branch3x3_2b": "1.1.ways.1",
    "branch3x3dbl_1": "2.0",
    "branch3x3dbl_2": "2.1",
    "branch3x3dbl_3": "2.2",
    "branch3x3dbl_3a": "2.2.ways.0",
    "branch3x3dbl_3b": "2.2.ways.1",
    **{f"branch7x7dbl_{number}": f"2.{number - 1}" for number in range(1, 6)},
    "branch_pool": "3.1",
}


def _rename_inception(name: str, network: nn.Module) -> str | None:
    block, _, rest = name.partition(".")
    rest = re.sub(r"(^|\.)conv\.(?=\w+$)", r"\g<1>0.", rest)  # the two parts of a unit
    rest = re.sub(r"(^|\.)bn\.(?=\w+$)", r"\g<1>1.", rest)
    if block in _INCEPTION_BLOCKS:
        branch, _, rest = rest.partition(".")
        tables = {"Mixed_6a": _SIX_A, "Mixed_7a": _SEVEN_A}
        place = tables.get(block, _OTHER_BRANCHES).get(branch)
        return f"{_INCEPTION_BLOCKS[block]}.ways.{place}.{rest}" if place else None
    units = [
        index
        for index, layer in enumerate(network.get_submodule("stem").children())
        if isinstance(layer, nn.Sequential)
    ]
    names = (
        "Conv2d_1a_3x3",
        "Conv2d_2a_3x3",
        "Conv2d_2b_3x3",
        "Conv2d_3b_1x1",
        "Conv2d_4a_3x3",
    )
    if block in names:
        return f"stem.{units[names.index(block)]}.{rest}"
    return _replace_prefix(
        f"{block}.{rest}",
        {
            "AuxLogits.conv0.": "auxiliary.maps.1.",
            "AuxLogits.conv1.": "auxiliary.maps.2.",
            "AuxLogits.fc.": "auxiliary.output.",
            "fc.": "output.",
        },
    )


def _rename_xception(name: str, _network: nn.Module) -> str | None:
    if match := re.fullmatch(r"block(\d+)\.(.+)", name):
        number = int(match[1]) - 1
        if number < 3:
            place = f"entry.{number}"
        elif number < 11:
            place = f"middle.{number - 3}"
        else:
            place = "exit.0"
        shortcut = {"skip.": "shortcut.0.", "skipbn.": "shortcut.1."}
        rest: str = _replace_prefix(match[2], shortcut) or match[2]
        if inside := re.fullmatch(r"rep\.(\d+)\.(.+)", rest):
            # ReLU, convolution and normalisation in turn, in the first block without the first.
            index = int(inside[1]) + (number == 0)
            layer = _separable_layer(inside[2]) or f"2.{inside[2]}"
            rest = f"change.{2 * (index // 3) + (number != 0)}.{layer}"
        return f"{place}.{rest}"
    for theirs, place in (("3", "exit.1"), ("4", "exit.3")):
        if name.startswith(f"conv{theirs}."):
            part = _separable_layer(name.removeprefix(f"conv{theirs}."))
            return f"{place}.{part}" if part else None
        if name.startswith(f"bn{theirs}."):
            return f"{place}.2.{name.removeprefix(f'bn{theirs}.')}"
    return _replace_prefix(
        name,
        {
            "conv1.": "stem.0.0.",
            "bn1.": "stem.0.1.",
            "conv2.": "stem.1.0.",
            "bn2.": "stem.1.1.",
            "fc.": "output.",
        },
    )


def _separable_layer(name: str) -> str | None:
    return _replace_prefix(name, {"conv1.": "0.", "pointwise.": "1."})


def _replace_prefix(name: str, prefixes: Mapping[str, str]) -> str | None:
    for theirs, ours in prefixes.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return None


_RENAMERS: dict[str, Callable[[str, nn.Module], str | None]] = {
    "vgg16": _rename_vgg,
    "resnet18": _rename_resnet,
    "resnet50": _rename_resnet,
    "inception-v3": _rename_inception,
    "xception": _rename_xception,
}
