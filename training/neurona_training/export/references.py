"""What an ONNX file is verified against: a saved torch program, or arrays from anywhere.

module.pt2       of torch.export.save: run at sizes that its dynamic shapes allow
reference.npz    arrays by the names of inputs and outputs; those of several cases have the name
                 of their case after a slash: "x/short", "y/short", "x/long", "y/long"
"""

from __future__ import annotations

import logging
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from neurona_training.errors import DataError, ExportError
from neurona_training.export.check_inputs import (
    BATCH,
    CHECKED_BATCH_SIZES,
    CheckCase,
    CheckedInput,
    Sizes,
    example_sizes,
    make_case,
    make_cases,
)
from neurona_training.export.graph_check import one_line
from neurona_training.export.module_call import flatten
from neurona_training.export.tensor_comparison import Array

_ROWS, _STEPS = 3, 5  # of a program without an example
_LARGEST = 1 << 40


@dataclass(frozen=True)
class ExpectedCase:
    """One case with its expected outputs by name; or why the reference has none."""

    case: CheckCase
    outputs: Mapping[str, Array]
    refused: str = ""


class OutputReference(ABC):
    """A reference: its cases, and the notes on what it cannot say."""

    same_types: bool
    free_axes: Sequence[str]
    notes: list[str]

    @abstractmethod
    def cases(self, fixed: Sequence[str]) -> Iterator[ExpectedCase]:
        """Yields the cases, with these axes in one size."""

    @abstractmethod
    def run(self, arrays: Mapping[str, Array]) -> Sequence[Array] | None:
        """The outputs for other inputs; None if the reference has no program."""


class ProgramReference(OutputReference):
    """A torch program, as `torch.export.export` makes it.

    Args:
        program: its inputs are those of the file, by name or by position.
        model: the file, which gives inputs, outputs and axes their names.

    Raises:
        ExportError: another number of inputs or outputs.
    """

    same_types = True

    def __init__(self, program: torch.export.ExportedProgram, model: onnx.ModelProto) -> None:
        self._program = program
        self._module = program.module()
        placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
        flat: list[Any] = [*program.graph_signature.user_inputs]
        self._places = [
            at
            for at, name in enumerate(flat)
            if isinstance(name, str) and isinstance(placeholders[name].meta["val"], Tensor)
        ]
        self._flat: list[Any] = [
            None if at in self._places else value for at, value in enumerate(flat)
        ]
        tensors = {str(flat[at]): placeholders[flat[at]].meta["val"] for at in self._places}
        graph_inputs = {one.name: one for one in graph_inputs_of(model)}
        if len(tensors) != len(graph_inputs):
            raise ExportError(
                f"the file has inputs {list(graph_inputs)} (expected {len(tensors)}, as the torch "
                f"program: {list(tensors)})"
            )
        names = list(tensors) if set(tensors) == set(graph_inputs) else list(graph_inputs)
        self._names = names
        self._outputs = [one.name for one in model.graph.output]
        examples = self._examples()
        symbols: dict[str, str] = {}
        self.notes = []
        self._limits: dict[str, range] = {}
        self._sizes_in_file: dict[str, int] = {}
        self._inputs = []
        ranges = {str(symbol): limit for symbol, limit in program.range_constraints.items()}
        for position, (name, tensor) in enumerate(zip(names, tensors.values(), strict=True)):
            axes = []
            dimensions = graph_inputs[name].type.tensor_type.shape.dim
            for at, size in enumerate(tensor.shape):
                symbol = str(size)
                if not symbol.isidentifier():  # a number, or a formula of another axis
                    axes.append("")
                    if at < len(dimensions) and dimensions[at].dim_param:
                        self.notes.append(
                            f"axis {dimensions[at].dim_param!r} of input {name!r} is compared in "
                            f"size {symbol} alone, which the torch program has fixed (an .npz with "
                            "several cases can have others)"
                        )
                    continue
                label = dimensions[at].dim_param if at < len(dimensions) else ""
                if not label.isidentifier() or label in symbols.values():
                    label = BATCH if at == 0 else f"{name}.{at}"
                axis = symbols.setdefault(symbol, label)
                axes.append(axis)
                if symbol in ranges:
                    self._limits[axis] = _range(ranges[symbol])
                if at < len(dimensions) and dimensions[at].dim_value:
                    self._sizes_in_file[axis] = dimensions[at].dim_value
            array = examples[position] if examples else _made_example(tensor)
            self._inputs.append(CheckedInput(name, array, tuple(axes)))
        self.free_axes = tuple(example_sizes(self._inputs))
        if not self.free_axes:
            self.notes.append(
                "the torch program has all sizes fixed, so that no other can be compared "
                "(torch.export.export with dynamic_shapes makes one of any size)"
            )

    def cases(self, fixed: Sequence[str]) -> Iterator[ExpectedCase]:
        """See `OutputReference`. An axis in one size has the file's."""
        inputs = self._inputs
        own = example_sizes(inputs)
        kept: Sizes = {
            **own,
            **{axis: size for axis, size in self._sizes_in_file.items() if axis in fixed},
        }
        if kept != own:
            resized = make_case(inputs, kept, "example", np.random.default_rng(0)).arrays
            inputs = [CheckedInput(one.name, resized[one.name], one.axes) for one in inputs]
        for case in make_cases(inputs, fixed=fixed, limits=self._limits):
            try:
                outputs = self.run(case.arrays)
            except ExportError:
                raise
            except Exception as error:
                yield ExpectedCase(case, {}, one_line(error))
                continue
            if len(outputs) != len(self._outputs):
                raise ExportError(
                    f"the file has outputs {self._outputs} (expected {len(outputs)}, as the torch "
                    "program)"
                )
            yield ExpectedCase(case, dict(zip(self._outputs, outputs, strict=True)))

    def run(self, arrays: Mapping[str, Array]) -> list[Array]:
        """See `OutputReference`."""
        flat = list(self._flat)
        for place, name in zip(self._places, self._names, strict=True):
            flat[place] = torch.from_numpy(np.array(arrays[name]))
        positional, keywords = pytree.tree_unflatten(flat, self._program.call_spec.in_spec)
        with torch.inference_mode():
            return [one.numpy() for _, one in flatten(self._module(*positional, **keywords))]

    def _examples(self) -> list[Array]:
        """The inputs with which the program was made, if it has them."""
        if self._program.example_inputs is None:
            return []
        leaves = [
            one
            for one in pytree.tree_leaves(self._program.example_inputs)
            if isinstance(one, Tensor)
        ]
        if len(leaves) != len(self._places):
            return []
        return [one.detach().cpu().numpy() for one in leaves]


class ArraysReference(OutputReference):
    """Inputs with their expected outputs, by the names that the file has.

    Args:
        arrays: by name, or by name and case.
        model: the file.

    Raises:
        ExportError: an unknown name, or a case without an input or without any output.
    """

    same_types = False  # scikit-learn's probabilities are float64

    def __init__(self, arrays: Mapping[str, Array], model: onnx.ModelProto) -> None:
        inputs = {one.name: one for one in graph_inputs_of(model)}
        outputs = {one.name for one in model.graph.output}
        self._cases: dict[str, dict[str, Array]] = {}
        for full_name, array in arrays.items():
            is_plain = full_name in inputs or full_name in outputs
            name, _, case = (full_name, "", "") if is_plain else full_name.rpartition("/")
            name, case = (name, case) if name else (full_name, "")
            if name not in inputs and name not in outputs:
                raise ExportError(
                    f"reference array {full_name!r} is neither input nor output of the file "
                    f"(expected inputs {list(inputs)}, outputs {sorted(outputs)})"
                )
            self._cases.setdefault(case, {})[name] = (
                _as_input(array, inputs[name]) if name in inputs else array
            )
        if not self._cases:
            raise ExportError("reference without arrays (expected inputs and outputs by name)")
        for case, named in self._cases.items():
            missing = [name for name in inputs if name not in named]
            if missing or not outputs & set(named):
                raise ExportError(
                    f"reference{f' case {case!r}' if case else ''} without "
                    f"{f'input {missing[0]!r}' if missing else 'an output'} (expected inputs "
                    f"{list(inputs)} and at least one output of {sorted(outputs)})"
                )
            for name, array in named.items():
                if not array.size:
                    raise ExportError(
                        f"reference array {name!r} of shape {list(array.shape)} is empty (expected "
                        "at least 1 row)"
                    )
        self._inputs = list(inputs)
        self.free_axes = (BATCH,) if any(map(_rows, self._cases.values())) else ()
        self.notes = []
        if not self.free_axes:
            self.notes.append(
                "the arrays have different numbers of rows, or one: no other batch size is compared"
            )

    def cases(self, fixed: Sequence[str]) -> Iterator[ExpectedCase]:
        """See `OutputReference`. Rows that stand together are compared in other batches too."""
        for name, arrays in self._cases.items():
            rows = _rows(arrays)
            others = (
                [one for one in CHECKED_BATCH_SIZES if one < rows] if BATCH not in fixed else []
            )
            # From the end, so that the parts have different rows.
            starts = [0, *(rows - size for size in others)]
            for start in starts:
                some = {key: array[start:] if rows else array for key, array in arrays.items()}
                sizes = {BATCH: rows - start} if rows else {}
                case = CheckCase(
                    {key: some[key] for key in self._inputs}, sizes, name or "reference"
                )
                yield ExpectedCase(
                    case, {key: some[key] for key in some if key not in self._inputs}
                )

    def run(self, arrays: Mapping[str, Array]) -> None:
        """See `OutputReference`."""
        del arrays


def open_reference(
    against: str | Path | torch.export.ExportedProgram | Mapping[str, Array],
    model: onnx.ModelProto,
) -> OutputReference:
    """Opens a reference.

    Args:
        against: a file, or what such a file holds.
        model: the file that is verified.

    Raises:
        DataError: the file cannot be read.
        ExportError: its inputs and outputs are not the model's.
    """
    if isinstance(against, torch.export.ExportedProgram):
        return ProgramReference(against, model)
    if isinstance(against, Mapping):
        arrays = {str(name): np.asarray(array) for name, array in against.items()}
        return ArraysReference(arrays, model)
    path = Path(against)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return ArraysReference({name: file[name] for name in file.files}, model)
        if path.suffix == ".pt2":
            return ProgramReference(_load_program(path), model)
    except ExportError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or one_line(error)}") from error
    except (ValueError, KeyError, RuntimeError, zipfile.BadZipFile, AttributeError) as error:
        reason = one_line(error).partition(" Please check the warnings")[0]
        raise DataError(
            f"cannot read {path}: {reason} (expected arrays of numpy.savez, without "
            "objects, or a program of torch.export.save)"
        ) from error
    raise DataError(f"cannot read {path} (expected a .pt2 or an .npz file)")


def _load_program(path: Path) -> torch.export.ExportedProgram:
    """Loads a .pt2 file without the traces that torch logs beside the error that it raises."""
    torch_log = logging.getLogger("torch.export")
    was_disabled, torch_log.disabled = torch_log.disabled, True
    try:
        return torch.export.load(path)
    finally:
        torch_log.disabled = was_disabled


def graph_inputs_of(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that callers send, without the weights that old files list among them."""
    weights = {one.name for one in model.graph.initializer}
    return [one for one in model.graph.input if one.name not in weights]


def _range(limit: Any) -> range:
    """The sizes in torch's range; its 2 stands for any size."""
    lower, upper = int(limit.lower), str(limit.upper)
    largest = min(int(upper), _LARGEST) if upper.isdecimal() else _LARGEST  # int_oo
    return range(1 if lower <= 2 else lower, largest + 1)


def _made_example(tensor: Tensor) -> Array:
    """Numbers for an input of a program that has no example."""
    shape = [
        int(str(size)) if str(size).isdecimal() else _STEPS if at else _ROWS
        for at, size in enumerate(tensor.shape)
    ]
    generator = np.random.default_rng(0)
    if tensor.is_floating_point():
        dtype = str(tensor.dtype).removeprefix("torch.")
        return generator.normal(size=shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(str(tensor.dtype).removeprefix("torch."))


def _as_input(array: Array, graph_input: onnx.ValueInfoProto) -> Array:
    """An array in the type of an input, where numpy calls the conversion one of the same kind."""
    kind = graph_input.type.tensor_type.elem_type
    if kind == onnx.TensorProto.STRING:
        return array.astype(object)
    wanted = onnx.helper.tensor_dtype_to_np_dtype(kind)
    return array.astype(wanted) if np.can_cast(array.dtype, wanted, "same_kind") else array


def _rows(arrays: Mapping[str, Array]) -> int:
    """The size of the first axis, where all arrays have the same one above 1; otherwise 0."""
    sizes = {len(array) if array.ndim else 0 for array in arrays.values()}
    return next(iter(sizes)) if len(sizes) == 1 and max(sizes) > 1 else 0
