"""How a module is called: its example as named tensors, its outputs as a flat list.

A module may take tensors by position or by name and return a tensor, a tuple or a mapping; an
ONNX graph has named inputs and named outputs, in an order.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neurona_training.errors import ExportError

Example = Any  # a tensor or array, a sequence of them, or a mapping by parameter

_CONSTANTS = (bool, int, float, type(None))  # arguments that the graph has as constants


@dataclass(frozen=True)
class CallForm:
    """The arguments of a module's forward, of which some are the graph's inputs.

    positional, keywords: the arguments of the example.
    as_mapping: whether forward takes all keywords in one argument.
    places: of each input, its position or keyword.
    """

    positional: tuple[Any, ...]
    keywords: Mapping[str, Any]
    as_mapping: bool
    places: tuple[int | str, ...]

    def call(self, module: nn.Module, inputs: Sequence[Tensor]) -> Any:
        """Calls the module with these tensors in the places of the example's."""
        positional, keywords = list(self.positional), dict(self.keywords)
        for place, tensor in zip(self.places, inputs, strict=True):
            if isinstance(place, int):
                positional[place] = tensor
            else:
                keywords[place] = tensor
        return module(keywords) if self.as_mapping else module(*positional, **keywords)


class FlatCall(nn.Module):
    """A module with its tensors by position, and all outputs in one tuple.

    Args:
        network: any module.
        form: how it is called.
        softmax: the position of the output whose logits become probabilities; None for none.
    """

    def __init__(self, network: nn.Module, form: CallForm, softmax: int | None) -> None:
        super().__init__()
        self.network = network
        self.form = form
        self.softmax = softmax

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Calls the module."""
        outputs = [output for _, output in flatten(self.form.call(self.network, inputs))]
        if self.softmax is not None:
            outputs[self.softmax] = torch.softmax(outputs[self.softmax], dim=-1)
        return tuple(outputs)


@dataclass(frozen=True)
class NamedExample:
    """An example's tensors by input, and the call that takes them."""

    tensors: Mapping[str, Tensor]
    form: CallForm = field(repr=False)


def read_example(module: nn.Module, example: Example, names: Sequence[str]) -> NamedExample:
    """Reads an example.

    Args:
        module: gives inputs without a name those of its forward's parameters.
        example: a tensor, a sequence of arguments, or a mapping by parameter; numpy arrays are
            tensors too. Numbers, booleans and None are constants of the graph.
        names: of the inputs, in the order of the example; empty takes the parameters'.

    Raises:
        ExportError: what is neither tensor nor constant, or a wrong number of names.
    """
    as_mapping = False
    if isinstance(example, Mapping):
        positional: tuple[Any, ...] = ()
        keywords = {str(name): _argument(value, str(name)) for name, value in example.items()}
        as_mapping = _takes_one_mapping(module, keywords)
    else:
        arguments = example if isinstance(example, tuple | list) else (example,)
        positional = tuple(_argument(value, str(at)) for at, value in enumerate(arguments))
        keywords = {}
    own_names = _parameter_names(module, len(positional))
    places: dict[int | str, str] = {
        at: own_names[at] for at, value in enumerate(positional) if isinstance(value, Tensor)
    }
    places |= {name: name for name, value in keywords.items() if isinstance(value, Tensor)}
    if not places:
        raise ExportError("example without a tensor (expected at least 1)")
    if names and len(names) != len(places):
        raise ExportError(
            f"{len(names)} input names {list(names)} (expected {len(places)}, one for each tensor "
            f"of the example)"
        )
    inputs = tuple(names or places.values())
    check_names("input", inputs)
    tensors = [positional[place] if isinstance(place, int) else keywords[place] for place in places]
    form = CallForm(positional, keywords, as_mapping, tuple(places))
    return NamedExample(dict(zip(inputs, tensors, strict=True)), form)


def flatten(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a module's output, with names from keys and positions.

    Raises:
        ExportError: something else than tensors, or a tensor without an ONNX form.
    """
    if isinstance(output, Tensor):
        if output.is_complex() or output.dtype == torch.bfloat16:
            raise ExportError(
                f"output {name or 0} is {str(output.dtype).removeprefix('torch.')}, which callers "
                "cannot take (expected real numbers, not bfloat16)"
            )
        yield name, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from flatten(value, f"{name}_{key}" if name else str(key))
    elif isinstance(output, tuple | list):
        for at, value in enumerate(output):
            yield from flatten(value, f"{name or 'output'}_{at}" if len(output) > 1 else name)
    elif output is not None:
        raise ExportError(
            f"output {name or 0} is a {type(output).__name__} (expected tensors, or tuples, lists "
            "and mappings of tensors)"
        )


def check_names(kind: str, names: Sequence[str]) -> None:
    """Checks the names of inputs or outputs.

    Raises:
        ExportError: an empty or repeated name.
    """
    for name in names:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ExportError(f"{kind} name {name!r} invalid (expected printable characters)")
    for name in names:
        if list(names).count(name) > 1:
            raise ExportError(f"{kind} name {name!r} repeated (expected different names)")


def _argument(value: Any, place: str) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        try:
            value = torch.as_tensor(np.ascontiguousarray(value))
        except TypeError as error:  # of strings and objects
            raise _no_argument(value, place) from error
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bfloat16 or value.layout != torch.strided:
            raise ExportError(
                f"argument {place} of the example is a {value.layout} tensor of {value.dtype} "
                "(expected a dense one of real numbers, integers or booleans, not bfloat16)"
            )
        return value.detach().cpu()
    if isinstance(value, _CONSTANTS):
        return value
    raise _no_argument(value, place)


def _no_argument(value: object, place: str) -> ExportError:
    return ExportError(
        f"argument {place} of the example is a {type(value).__name__} (expected a tensor, or a "
        "number, boolean or None that becomes a constant)"
    )


def _parameter_names(module: nn.Module, count: int) -> list[str]:
    """The names of the first positional parameters of a module's forward."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a module compiled by torch.jit
        parameters = []  # type: ignore[assignment]
    names = [one.name for one in parameters if one.kind in kinds][:count]
    return [*names, *(f"input_{at}" if count > 1 else "input" for at in range(len(names), count))]


def _takes_one_mapping(module: nn.Module, keywords: Mapping[str, Any]) -> bool:
    """Whether forward takes one mapping instead of these keywords."""
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):
        return False
    try:
        signature.bind(**keywords)
    except TypeError:
        required = [
            one
            for one in signature.parameters.values()
            if one.default is one.empty and one.kind is not one.VAR_KEYWORD
        ]
        return len(required) == 1
    return False
