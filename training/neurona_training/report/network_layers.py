"""The layers of a network as one test row passes them: what they do, output sizes, parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNBase
from torch.overrides import TorchFunctionMode

from neurona_training.architectures.audio import LogMel
from neurona_training.architectures.classic import Threshold
from neurona_training.architectures.columns import EncodeColumns
from neurona_training.architectures.convolutional import PartialConvolution, Subsampling
from neurona_training.architectures.input_layers import (
    Denormalise,
    Features,
    Normalise,
    RgbInput,
    StandardiseColumns,
    ValueScale,
)
from neurona_training.architectures.neocognitron import CCells, SCells

_ACTIVATIONS = {
    **dict.fromkeys(("relu", "relu_", "ReLU"), "ReLU"),
    **dict.fromkeys(("tanh", "Tanh"), "tanh"),
    **dict.fromkeys(("sigmoid", "Sigmoid"), "sigmoid"),
    "gelu": "GELU",
    "GELU": "GELU",
    "elu": "ELU",
    "ELU": "ELU",
    "silu": "SiLU",
    "SiLU": "SiLU",
    "leaky_relu": "leaky ReLU",
    "LeakyReLU": "leaky ReLU",
}
_MAX_SIZES = 3  # of convolutions named one by one in a block


@dataclass(frozen=True)
class Layer:
    """One line of the table of layers.

    Args:
        name: path of the submodule.
        kind: what it does, in words.
        shape: of its output for one row, without the batch axis.
        parameters: numbers that it has learned.
        module: None for a step of the network's own `forward`.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    module: nn.Module | None = None

    @property
    def is_map(self) -> bool:
        """Whether the output is maps of numbers beside and above each other, (maps, h, w)."""
        return self.module is not None and len(self.shape) == 3


def trace_layers(network: nn.Module, arrays: Iterable[Any]) -> tuple[Layer, ...]:
    """Runs the network and notes its layers in the order in which data pass them.

    A block of several layers, as in deep networks, is one layer here. Activations and dropout
    are part of the layer before them.

    Args:
        network: on the CPU; used in evaluation mode.
        arrays: its inputs for one row, in the order of `Split.arrays`.
    """
    network.eval()
    listed = dict(_listed_modules(network))
    # The name in the network itself, without what is wrapped around it.
    names = {module: name.rpartition("network.")[2] for name, module in listed.items()}
    recorder = _Recorder(network, names)
    with recorder, torch.no_grad():
        network(*(torch.from_numpy(array) for array in arrays))
    layers = recorder.layers
    passed = {id(layer.module) for layer in layers}
    for name, module in listed.items():  # an auxiliary classifier, for example
        count = _count_parameters(module.parameters())
        if id(module) not in passed and count:
            layers.append(Layer(name, "in training only", (), count, None))
    rest = _count_parameters(network.parameters()) - sum(layer.parameters for layer in layers)
    if rest > 0:
        layers.append(Layer("", "other weights", (), rest))
    return tuple(layers)


def format_shape(shape: tuple[int, ...]) -> str:
    """Sizes of a layer's output: `6 maps of 28 x 28`, `120`."""
    if len(shape) == 3:
        return f"{shape[0]:,} x {shape[1]} x {shape[2]}"
    return " x ".join(f"{size:,}" for size in shape)


def _count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    return sum(one.numel() for one in parameters)


def _is_container(name: str, module: nn.Module) -> bool:
    """Whether its children are layers of the table, not parts of one block."""
    # Behind an encoding or a preparation, or beside a linear forecast.
    is_wrapped = name.rpartition(".")[2] in ("network", "correction")
    return type(module) in (nn.Sequential, nn.ModuleList, nn.ModuleDict) or is_wrapped


def _listed_modules(network: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in network.named_children():
        path = f"{prefix}{name}"
        if _is_container(path, child):
            yield from _listed_modules(child, f"{path}.")
        else:
            yield path, child


class _Recorder(TorchFunctionMode):
    """Notes the outputs of listed modules, and functions between them."""

    def __init__(self, network: nn.Module, names: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.network, self.names = network, names
        self.layers: list[Layer] = []
        self._inside = 0  # depth of listed modules that are running
        self._owners: list[nn.Module] = []  # containers that are running
        self._hooks: list[Any] = []

    def __enter__(self) -> _Recorder:
        for module in self.network.modules():
            self._hooks.append(module.register_forward_pre_hook(self._before))
            self._hooks.append(module.register_forward_hook(self._after))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *details: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*details)  # type: ignore[no-untyped-call]

    def _before(self, module: nn.Module, _inputs: Any) -> None:
        if module in self.names:
            self._inside += 1
        elif not self._inside:
            self._owners.append(module)

    def _after(self, module: nn.Module, _inputs: Any, outputs: Any) -> None:
        if module not in self.names:
            if not self._inside:
                self._owners.pop()
            return
        self._inside -= 1
        if not self._inside:
            self._add_module(module, outputs)

    def _add_module(self, module: nn.Module, outputs: Any) -> None:
        if isinstance(module, nn.Identity):
            return
        word = _ACTIVATIONS.get(type(module).__name__)
        if isinstance(module, nn.Dropout):
            word = f"dropout {module.p:g}" if module.p else ""
        if word is not None:
            self._append(word)
            return
        shape = _row_shape(outputs)
        count = _count_parameters(module.parameters())
        kind = describe_module(module)
        if any(layer.module is module for layer in self.layers):
            return  # used twice; its parameters count once
        self.layers.append(Layer(self.names[module], kind, shape, count, module))

    def _append(self, word: str) -> None:
        if self.layers and word:
            last = self.layers[-1]
            self.layers[-1] = replace(last, kind=f"{last.kind}, {word}")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if self._inside or not self._owners:
            return output
        name = getattr(func, "__name__", "")
        if name in _ACTIVATIONS:
            self._append(_ACTIVATIONS[name])
        elif name == "mean" and isinstance(output, Tensor) and args[0].ndim == 4:
            self.layers.append(Layer("", "mean of each map", _row_shape(output), 0))
        elif name == "linear":
            count = _count_parameters(self._owners[-1].parameters(recurse=False))
            shape = _row_shape(output)
            kind = f"fully connected, {_count(shape[-1], 'unit')}"
            self.layers.append(Layer("linear", kind, shape, count))
        return output


def _row_shape(outputs: Any) -> tuple[int, ...]:
    while not isinstance(outputs, Tensor):
        outputs = outputs[0]
    return tuple(outputs.shape[1:])


def describe_module(module: nn.Module) -> str:
    """What a layer does, in a few words."""
    for kinds, describe in _DESCRIPTIONS:
        if isinstance(module, kinds):
            return describe(module)
    children = list(module.children())
    if len(children) == 1 and not hasattr(module, "ways"):
        return describe_module(children[0])
    if isinstance(module, nn.Sequential):
        return ", ".join(describe_module(child) for child in children)
    sizes = [
        _size(one.kernel_size)
        for name, one in module.named_modules()
        if isinstance(one, nn.Conv2d) and not name.startswith("shortcut")
    ]
    if len(sizes) > _MAX_SIZES:
        convolutions = f"{len(sizes)} convolutions"
    else:
        convolutions = f"convolutions {', '.join(sizes)}" if sizes else ""
    if hasattr(module, "shortcut"):
        return f"residual block: {convolutions}, added to the input"
    ways = getattr(module, "ways", None)
    if ways is not None:
        return f"{len(ways)} branches side by side: {convolutions}"
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(module).__name__.lstrip("_")).lower()
    return f"{name}: {convolutions}" if convolutions else name


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _size(size: int | tuple[int, ...]) -> str:
    height, width = (size, size) if isinstance(size, int) else size[:2]
    return f"{height} x {width}"


def _describe_convolution(module: Any) -> str:
    kernels = _count(module.out_channels, "kernel")
    text = f"convolution, {kernels} of {_size(module.kernel_size)}"
    if module.groups > 1:
        text += ", each on its own map"
    return text if max(module.stride) == 1 else f"{text}, stride {max(module.stride)}"


def _describe_pooling(module: Any) -> str:
    what = "largest" if isinstance(module, nn.MaxPool2d) else "mean"
    return f"pooling: {what} of each {_size(module.kernel_size)}"


def _describe_recurrent(module: Any) -> str:
    names = {"LSTM": "LSTM, three gates and a memory cell", "GRU": "GRU, two gates"}
    text = f"{names.get(module.mode, 'recurrent')}, {_count(module.hidden_size, 'unit')}"
    if module.num_layers > 1:
        text += f" in each of {module.num_layers} layers"
    return f"{text}, in both directions" if module.bidirectional else text


_SCALING = (Normalise, StandardiseColumns, Features, RgbInput)
_DESCRIPTIONS: tuple[tuple[Any, Callable[[Any], str]], ...] = (
    (_SCALING, lambda _: "scaling of the inputs"),
    (ValueScale, lambda one: f"scale of the series: {one.scale}"),
    (EncodeColumns, lambda _: "missing values, dates and texts become numbers"),
    (Denormalise, lambda _: "scaling to the unit of the target"),
    (nn.Linear, lambda one: f"fully connected, {_count(one.out_features, 'unit')}"),
    (nn.Conv2d, _describe_convolution),
    (nn.BatchNorm2d, lambda _: "batch normalisation"),
    ((nn.MaxPool2d, nn.AvgPool2d), _describe_pooling),
    (nn.Upsample, lambda _: "resized"),
    (nn.ReLU, lambda _: "ReLU"),
    (RNNBase, _describe_recurrent),
    (
        nn.Embedding,
        lambda one: (
            f"embedding: {one.embedding_dim} numbers for each of {one.num_embeddings} categories"
        ),
    ),
    (LogMel, lambda one: f"loudness of {one.bands.shape[1]} bands of pitch, as logarithms"),
    (Threshold, lambda one: f"threshold, {_count(len(one.threshold), 'unit')}"),
    (
        PartialConvolution,
        lambda one: (
            f"convolution, {len(one.bias)} kernels of {_size(one.weight.shape[-1])}, "
            "each on some maps"
        ),
    ),
    (Subsampling, lambda _: "pooling: mean of each 2 x 2, weighted"),
    (
        SCells,
        lambda one: (
            f"S-cells, {len(one.inhibitory)} planes of "
            f"{_size(one.excitatory.shape[-1])}, selectivity {one.selectivity:g}"
        ),
    ),
    (CCells, lambda one: f"C-cells, tolerant within {_size(one.reach.shape[-1])}"),
)
