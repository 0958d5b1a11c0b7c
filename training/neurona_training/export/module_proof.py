"""The proof that an exported module's graph gives the module's outputs at every size.

First the module itself is run: it has to be a function of its inputs, and each free axis has to
be one that it takes in other sizes. Then it is traced and converted, and the graph's outputs are
compared with the module's in many cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor

from neurona_protos.prediction_pb2 import ModelMetadata
from neurona_training.errors import ExportError
from neurona_training.export.check_inputs import (
    BATCH,
    CHECKED_BATCH_SIZES,
    CheckCase,
    CheckedInput,
    example_sizes,
    make_case,
    make_cases,
)
from neurona_training.export.free_axes import choose_traced_sizes, dynamic_shapes, frozen_axis
from neurona_training.export.graph_check import RunnableGraph, check_case, one_line
from neurona_training.export.module_call import FlatCall
from neurona_training.export.onnx_export import serialise, simplify, to_onnx, torch_program
from neurona_training.export.parity import find_differing_layer, read_module_scopes
from neurona_training.export.recurrent_operators import emit_recurrent_operators
from neurona_training.export.tensor_comparison import Array, Tolerance

_LARGEST_FILE = (1 << 31) - 1  # bytes of a protobuf message


class ModuleProof:
    """The verification of one export.

    Args:
        network: gives the expected outputs.
        inputs: all inputs, with the example.
        names: of the outputs.
        tolerance: how far outputs may differ.
        limits: sizes that free axes may have.
    """

    def __init__(
        self,
        network: FlatCall,
        inputs: Sequence[CheckedInput],
        names: Sequence[str],
        tolerance: Tolerance,
        limits: Mapping[str, range],
    ) -> None:
        self.network = network
        self.inputs = inputs
        self.names = tuple(names)
        self.tolerance = tolerance
        self.limits = limits
        self.differences: dict[str, float] = {}
        self.skipped: dict[str, str] = {}
        self.undecided = 0
        self._sizes = example_sizes(inputs)

    def reference(self, arrays: Mapping[str, Array]) -> list[Array]:
        """The module's outputs."""
        tensors = (torch.from_numpy(arrays[one.name].copy()) for one in self.inputs)
        with torch.inference_mode():
            return [output.numpy() for output in self.network(*tensors)]

    def example_outputs(self) -> list[Array]:
        """The module's outputs for the example."""
        return self.reference({one.name: one.example for one in self.inputs})

    def check_module(self) -> dict[str, tuple[str | int, ...]]:
        """Checks that the module is a function of its inputs, for any number of rows.

        Returns:
            By output, its axes: a name for those of a free axis' size, otherwise a number.

        Raises:
            ExportError: two runs differ, rows are not along the first axis, or no other size of
                an axis is taken.
        """
        first, second = self.example_outputs(), self.example_outputs()
        for name, one, other in zip(self.names, first, second, strict=True):
            if one.shape != other.shape or not np.array_equal(
                one, other, equal_nan="f" in one.dtype.kind
            ):
                raise ExportError(
                    f"output {name!r} differs between two runs with the same input, in evaluation "
                    "mode: random numbers or a dropout with training=True in forward, or a state "
                    "that the module keeps (expected a function of the inputs)"
                )
        shapes: list[list[str | int]] = [list(output.shape) for output in first]
        for axis, size in self._sizes.items():
            changed = self._first_taken(axis, size)
            if changed is None:
                raise ExportError(self._refused(axis, size))
            case, outputs = changed
            for shape, output, before in zip(shapes, outputs, first, strict=True):
                for at, (new, old) in enumerate(zip(output.shape, before.shape, strict=False)):
                    if new != old:
                        is_own = (new, old) == (case.sizes[axis], size)
                        shape[at] = axis if is_own else f"{axis}_{at}"
            if axis == BATCH:
                self._check_rows(shapes)
                self._check_batch_sizes()
        return {name: tuple(shape) for name, shape in zip(self.names, shapes, strict=True)}

    def _check_rows(self, shapes: Sequence[Sequence[str | int]]) -> None:
        for name, shape in zip(self.names, shapes, strict=True):
            has_rows = any(str(axis).startswith(BATCH) for axis in shape)
            if has_rows and shape[0] != BATCH:
                raise ExportError(
                    f"output {name!r} has the rows of the batch on axes {list(shape)} (expected "
                    "'batch' first: an example has the batch axis first, as example[None] of one "
                    "row; or `axes` names other axes)"
                )

    def _check_batch_sizes(self) -> None:
        """Checks that the module takes any number of rows, not only some."""
        for rows in CHECKED_BATCH_SIZES:
            if rows in self.limits.get(BATCH, CHECKED_BATCH_SIZES):
                sizes = {**self._sizes, BATCH: rows}
                case = make_case(self.inputs, sizes, "example", np.random.default_rng(0))
                try:
                    self.reference(case.arrays)
                except Exception as error:
                    raise ExportError(
                        f"module takes no batch of {rows}: {one_line(error)} (expected any number "
                        "of rows, or limits: a torch.export.Dim in `axes`)"
                    ) from error

    def _first_taken(self, axis: str, size: int) -> tuple[CheckCase, list[Array]] | None:
        """The first other size of an axis that the module takes, with its outputs."""
        self._last_error = ""
        limit = self.limits.get(axis)
        for other in (size + 1, 2 * size, 3 * size, size - 1, size // 2):
            if other < 1 or (limit is not None and other not in limit):
                continue
            sizes = {**self._sizes, axis: other}
            case = make_case(self.inputs, sizes, "example", np.random.default_rng(0))
            try:
                return case, self.reference(case.arrays)
            except Exception as error:
                self._last_error = self._last_error or one_line(error)
        return None

    def _refused(self, axis: str, size: int) -> str:
        hint = (
            "the batch axis first in each tensor of the example, as example[None] of one row"
            if axis == BATCH
            else f"`axes` without {axis!r}"
        )
        return (
            f"module takes no other size of axis {axis!r} than {size}: {self._last_error} "
            f"(expected {hint})"
        )

    def export(
        self,
        axes: Mapping[str, Sequence[str]],
        output_axes: Mapping[str, Sequence[str | int]],
        described: ModelMetadata,
        opset: int,
    ) -> bytes:
        """Traces, converts and verifies; returns the file.

        Raises:
            ExportError: torch cannot export the module, an axis is frozen, or an output differs.
        """
        simple = simplify(self.network)
        kept_layers = emit_recurrent_operators(simple)
        program = torch_program(
            simple, self._traced_example(), (dynamic_shapes(axes, self.limits),)
        )
        if frozen := frozen_axis(program, axes):
            name, at, axis, size = frozen
            for layer, kind in kept_layers.items():
                raise ExportError(
                    f"axis {axis!r} (axis {at} of input {name!r}) cannot be of any size: torch "
                    f"exports {layer.removeprefix('network.')!r}, a recurrent layer {kind}, with "
                    f"{size} steps (expected one of float32 without proj_size, as module.float(); "
                    f"or `axes` without {axis!r})"
                )
            raise ExportError(
                f"axis {axis!r} (axis {at} of input {name!r}) cannot be of any size: forward fixes "
                f"it at {size}, by a number in a reshape or view, a loop over its steps, or a size "
                f"taken as int (expected sizes from x.shape, nn.GRU and the like instead of loops; "
                f"or `axes` without {axis!r})"
            )
        problem = ""
        for optimise in (True, False):
            # The optimiser takes tiny constants for 0, which they are not beside tiny values.
            model = to_onnx(program, axes, self.names, opset=opset, optimise=optimise)
            if model.ByteSize() > _LARGEST_FILE:
                raise ExportError(
                    f"model of {model.ByteSize() / 1e9:.1f} GB (expected at most 2.1 GB, the limit "
                    "of an ONNX file; module.half() needs half)"
                )
            _name_output_axes(model, output_axes)
            scopes = read_module_scopes(model)
            content = serialise(model, described)
            failed = self._verify(RunnableGraph(content))
            if failed is None:
                return content
            case, problem = failed
            if not optimise:
                problem += f"; {self._differing_layer(model, scopes, case)}"
        raise ExportError(problem)

    def _traced_example(self) -> tuple[Tensor, ...]:
        for sizes in (choose_traced_sizes(self._sizes, self.limits), self._sizes):
            case = make_case(self.inputs, sizes, "example", np.random.default_rng(0))
            try:
                self.reference(case.arrays)
            except Exception:  # noqa: S112  sizes that the module does not take together
                continue
            break
        return tuple(torch.from_numpy(case.arrays[one.name]) for one in self.inputs)

    def _verify(self, graph: RunnableGraph) -> tuple[CheckCase, str] | None:
        """Compares all cases; returns the first that differs, in words."""
        self.differences, self.skipped, self.undecided = {}, {}, 0
        names = [one.name for one in self.inputs]
        if graph.inputs != names:
            raise ExportError(f"the graph has inputs {graph.inputs} (expected {names})")
        for case in make_cases(self.inputs, limits=self.limits):
            try:
                expected = self.reference(case.arrays)
            except Exception as error:
                self.skipped[str(case)] = one_line(error)
                continue
            by_name = dict(zip(self.names, expected, strict=True))
            result = check_case(graph, case, by_name, self.tolerance, self.reference)
            if result.fault:
                return case, f"the file differs from torch at {case}: {result.fault}"
            self.differences[str(case)] = result.largest
            self.undecided += result.undecided
        return None

    def _differing_layer(
        self, model: onnx.ModelProto, scopes: Mapping[str, frozenset[str]], case: CheckCase
    ) -> str:
        arrays = tuple(case.arrays[one.name] for one in self.inputs)
        try:
            layer = find_differing_layer(model, scopes, self.network, arrays, dict(case.arrays))
        except Exception:
            layer = None
        return layer or "no single layer differs"


def _name_output_axes(model: onnx.ModelProto, axes: Mapping[str, Sequence[str | int]]) -> None:
    """Names the outputs' axes that torch has formulas for, in place."""
    for output in model.graph.output:
        shape = output.type.tensor_type.shape
        for dimension, axis in zip(shape.dim, axes[output.name], strict=False):
            if dimension.dim_param and isinstance(axis, str) and axis.isidentifier():
                dimension.dim_param = axis
