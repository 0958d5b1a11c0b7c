"""The values that a model takes: finite numbers, possible lengths of sequences, known categories.

A graph answers other values too, with probabilities that are NaN, or fails on them. What it takes
stands in its metadata, in its settings, and, for lengths, in its recurrent nodes. The batcher
checks the joined inputs of a batch before their run, which costs a small request next to nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np

from neurona_protos.prediction_pb2 import DataType, InputDescription, ModelMetadata
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.ranking import ranked_rows
from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.errors import InvalidValueError, LoadError, close_match, quoted
from neurona_server.models.onnx.sequence_lengths import LengthsInput
from neurona_server.models.repository.settings import TensorSettings
from neurona_server.models.reshape import Reshape
from neurona_server.models.signature import TensorSpec

MAX_DOT_PRODUCT = 4096
"""Elements of an array up to which its dot product with itself shows that all are finite, in half
the time of looking at each. Of longer ones BLAS would use several threads."""

_MAX_NAMED_CATEGORIES = 10


class InputBounds:
    """The checks of all inputs of a model."""

    def __init__(self, bounds: Sequence["_Bound"]) -> None:
        self._bounds = bounds

    def __bool__(self) -> bool:
        return bool(self._bounds)

    def check(self, inputs: Inputs, first_row: int = 0) -> None:
        """Check the values of one or several requests; inputs that are left out are not checked.

        Args:
            inputs: The arrays by name, as `Signature.check` accepts them.
            first_row: The number of their first row, for the error.

        Raises:
            InvalidValueError: With input and row of the first value that is out of bounds.
        """
        for bound in self._bounds:
            bound.check(inputs, first_row)

    @property
    def checker(self) -> Callable[[Inputs, int], None]:
        """`check`, or what it calls if that is one check alone: each request pays for a call."""
        return self._bounds[0].check if len(self._bounds) == 1 else self.check


def find_input_bounds(
    metadata: ModelMetadata,
    inputs: Sequence[TensorSpec],
    lengths: Sequence[LengthsInput],
    reshapes: Mapping[str, Reshape] | None = None,
    min_length: int = 0,
) -> InputBounds:
    """Return the bounds of a model's inputs.

    Args:
        metadata: What the file and the settings say.
        inputs: All inputs, including optional ones, with their shapes in requests.
        lengths: The lengths that its recurrent nodes read, with axes of the graph.
        reshapes: Of inputs that have other shapes in the graph, by name.
        min_length: The least length that callers may send.

    Raises:
        LoadError: The metadata contradict the inputs.
    """
    specs = {spec.name: spec for spec in inputs}
    bounds: list[_Bound] = []
    for described in metadata.inputs:
        spec = specs.get(described.name)
        if spec is None:  # the description of a tensor that the graph does not have
            continue
        if described.finite and _has_floats(spec):
            columns = tuple(described.columns)
            is_bfloat16 = spec.dtype == DataType.DATA_TYPE_BFLOAT16
            bounds.append(_FiniteNumbers(spec.name, columns, described.allow_nan, is_bfloat16))
        if described.only_categories and described.categories:
            bounds.append(_Categories(spec.name, _category_strings(described)))
        if described.lengths_of:
            bounds.append(_declared_lengths(described, specs, reshapes or {}))
    declared = {bound.name for bound in bounds if isinstance(bound, _Lengths)}
    bounds.extend(
        _Lengths(one.name, one.sequences, one.axis, min_length, (reshapes or {}).get(one.sequences))
        for one in lengths
        if one.name not in declared and one.name in specs and _has_integers(specs[one.name])
    )
    return InputBounds(bounds)


def set_input_settings(
    description: InputDescription, spec: TensorSpec, settings: TensorSettings
) -> None:
    """Put what the settings say about the values of an input into its description.

    Raises:
        LoadError: The input has no such values.
    """
    if settings.allow_nan is not None:
        is_text = NUMPY_DTYPES[spec.dtype].kind == "O"
        if not (is_text or _has_floats(spec)):
            raise LoadError(
                f"its settings have allow_nan for input {spec.name!r}, which is {spec} "
                "(expected floats)"
            )
        description.allow_nan = settings.allow_nan
        description.finite |= not (is_text or settings.allow_nan)
    if settings.allow_unknown is not None:
        if not description.categories:
            raise LoadError(
                f"its settings have allow_unknown for input {spec.name!r}, whose categories the "
                "file does not say"
            )
        description.only_categories = not settings.allow_unknown


class AnswerBounds:
    """The check of the answer of a model whose numbers are finite: a classification or regression.

    Finite numbers that are far too large for it become infinite inside the graph.
    """

    def __init__(self, index: int) -> None:
        """Check the output at this index."""
        self._index = index

    def accepts(self, outputs: Outputs) -> bool:
        """Return whether the answer to one or several requests is finite."""
        answer = outputs[self._index]
        if ranked_rows(answer) is not None:  # they are finite
            return True
        return answer.dtype.kind != "f" or are_finite(answer)

    def check(self, outputs: Outputs, first_row: int = 0) -> None:
        """Check the outputs of one or several requests.

        Args:
            outputs: All outputs of a run.
            first_row: The number of their first row, for the error.

        Raises:
            InvalidValueError: With the first row whose answer is not finite.
        """
        if self.accepts(outputs):
            return
        answer = outputs[self._index]
        position = [int(index) for index in np.argwhere(~np.isfinite(answer))[0][:1]]
        row = f"row {first_row + position[0]}: " if position else ""
        raise InvalidValueError(
            f"{row}the answer is not finite (expected inputs closer to those of the training)"
        )


def find_answer_bounds(
    index: int, settings: Mapping[str, TensorSettings], *, finite: bool
) -> AnswerBounds | None:
    """Return the check of the output at an index, None where the answer need not be finite.

    It must be for a model whose file says that it takes finite numbers only, unless the settings
    of an input say otherwise: then a NaN may be the answer to a NaN. Settings alone are no reason:
    the answer of another model may be infinite, such as the logarithm of a probability.

    Args:
        index: Of the answer among the outputs, -1 without one.
        settings: Of inputs.
        finite: Whether the file says so of an input.
    """
    if index < 0 or not finite:
        return None
    if any(tensor.allow_nan for tensor in settings.values()):
        return None
    return AnswerBounds(index)


class _Bound(Protocol):
    @property
    def name(self) -> str: ...

    def check(self, inputs: Inputs, first_row: int) -> None: ...


@dataclass(frozen=True)
class _FiniteNumbers:
    name: str
    columns: tuple[str, ...]
    allow_nan: bool
    is_bfloat16: bool = False

    def check(self, inputs: Inputs, first_row: int) -> None:
        array = inputs.get(self.name)
        if array is None:  # an optional input that is left out
            return
        if self.is_bfloat16:  # the upper halves of floats
            array = (array.astype(np.uint32) << 16).view(np.float32)
        if are_finite(array):
            return
        infinite = np.isinf(array) if self.allow_nan else ~np.isfinite(array)
        if not infinite.any():
            return
        position = [int(index) for index in np.argwhere(infinite)[0]]
        where = _row(self.name, position[:1], first_row)
        if position and len(self.columns) == (array.shape[-1] if len(position) > 1 else 1):
            where += f", column {self.columns[position[-1] if len(position) > 1 else 0]!r}"
        elif len(position) > 1:
            where += f", position {position[1:]}"
        missing = ", or NaN for a missing one" if self.allow_nan else ""
        raise InvalidValueError(
            f"{where}: {array[tuple(position)]} (expected a finite number{missing})"
        )


@dataclass(frozen=True)
class _Lengths:
    name: str
    sequences: str
    axis: int
    lowest: int
    reshape: Reshape | None = None
    """Of the sequences, if they have another shape in the graph, whose axis it is."""

    def check(self, inputs: Inputs, first_row: int) -> None:
        array = inputs.get(self.name)
        if array is None:
            return
        sequences = inputs.get(self.sequences)
        highest: float = math.inf
        if sequences is not None:
            shape = sequences.shape
            if self.reshape is not None:
                shape = self.reshape.graph_shape(shape)
            if self.axis < len(shape):
                highest = shape[self.axis]
        if array.size and (array.min() < self.lowest or array.max() > highest):
            self._fail(array, highest, first_row)

    def _fail(self, array: Array, highest: float, first_row: int) -> NoReturn:
        position = np.argwhere((array < self.lowest) | (array > highest))[0]
        where = _row(self.name, [int(index) for index in position[:1]], first_row)
        expected = f"{self.lowest} or more"
        if highest < math.inf:
            expected = f"{self.lowest} to {highest}, the steps of {self.sequences!r}"
        raise InvalidValueError(f"{where}: length {array[tuple(position)]} (expected {expected})")


@dataclass(frozen=True)
class _Categories:
    name: str
    categories: frozenset[str]

    def check(self, inputs: Inputs, first_row: int) -> None:
        array = inputs.get(self.name)
        if array is None:
            return
        if self.categories.issuperset(array.ravel().tolist()):
            return
        flat = array.ravel().tolist()
        index = next(index for index, text in enumerate(flat) if text not in self.categories)
        where = _row(self.name, np.unravel_index(index, array.shape)[:1], first_row)
        names = sorted(self.categories - {""})
        listed = ", ".join(map(quoted, names[:_MAX_NAMED_CATEGORIES]))
        more = len(names) - _MAX_NAMED_CATEGORIES
        if more > 0:
            listed += f" or one of {more} others"
        hint = close_match(flat[index][:100], names)
        raise InvalidValueError(f"{where}: {quoted(flat[index])} (expected one of {listed}{hint})")


def are_finite(array: Array) -> bool:
    """Return whether no number of an array of floats is NaN or infinite."""
    is_short = array.size <= MAX_DOT_PRODUCT and array.dtype.itemsize >= 4
    # NaN and infinities stay in the sum; that of large numbers may be infinite without them.
    return (is_short and math.isfinite(np.vdot(array, array))) or bool(np.isfinite(array).all())


def _row(name: str, index: Sequence[Any], first_row: int) -> str:
    return f"input {name!r} row {first_row + int(index[0])}" if len(index) else f"input {name!r}"


def _category_strings(described: InputDescription) -> frozenset[str]:
    missing = ("",) if described.allow_nan else ()
    return frozenset((*described.categories, *missing))


def _declared_lengths(
    described: InputDescription,
    specs: Mapping[str, TensorSpec],
    reshapes: Mapping[str, Reshape],
) -> _Lengths:
    sequences, axis = specs.get(described.lengths_of), described.lengths_axis
    reshape = reshapes.get(described.lengths_of)
    axes: float = 0
    if sequences is not None:
        axes = math.inf if sequences.any_shape else len(sequences.shape)
    if axis >= (axes if reshape is None else len(reshape.in_graph)):
        raise LoadError(
            f"its metadata say that input {described.name!r} has the lengths of axis {axis} of "
            f"{described.lengths_of!r}; its inputs are {', '.join(map(repr, specs))}"
        )
    return _Lengths(described.name, described.lengths_of, axis, 1, reshape)


def _has_floats(spec: TensorSpec) -> bool:
    is_bfloat16 = spec.dtype == DataType.DATA_TYPE_BFLOAT16
    return is_bfloat16 or NUMPY_DTYPES[spec.dtype].kind == "f"


def _has_integers(spec: TensorSpec) -> bool:
    return spec.dtype in (DataType.DATA_TYPE_INT32, DataType.DATA_TYPE_INT64)
