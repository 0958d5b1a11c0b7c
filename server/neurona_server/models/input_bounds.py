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

from neurona_protos.prediction_pb2 import InputDescription, ModelMetadata
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.errors import InvalidValueError, LoadError, close_match, quoted
from neurona_server.models.onnx.sequence_lengths import LengthsInput
from neurona_server.models.repository.settings import TensorSettings
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
) -> InputBounds:
    """Return the bounds of a model's inputs.

    Args:
        metadata: What the file and the settings say.
        inputs: All inputs, including optional ones.
        lengths: The lengths that its recurrent nodes read.

    Raises:
        LoadError: The metadata contradict the inputs.
    """
    specs = {spec.name: spec for spec in inputs}
    bounds: list[_Bound] = []
    for described in metadata.inputs:
        spec = specs.get(described.name)
        if spec is None:  # the description of a tensor that the graph does not have
            continue
        if described.finite and NUMPY_DTYPES[spec.dtype].kind == "f":
            columns = tuple(described.columns)
            bounds.append(_FiniteNumbers(spec.name, columns, described.allow_nan))
        if described.only_categories and described.categories:
            bounds.append(_Categories(spec.name, _category_strings(described)))
        if described.lengths_of:
            bounds.append(_declared_lengths(described, specs))
    declared = {bound.name for bound in bounds if isinstance(bound, _Lengths)}
    bounds.extend(
        _Lengths(one.name, one.sequences, one.axis, 0)
        for one in lengths
        if one.name not in declared and one.name in specs
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
        if NUMPY_DTYPES[spec.dtype].kind not in "fO":
            raise LoadError(
                f"its settings have allow_nan for input {spec.name!r}, which is {spec} "
                "(expected floats)"
            )
        description.allow_nan = settings.allow_nan
        description.finite |= not settings.allow_nan
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
    metadata: ModelMetadata, index: int, settings: Mapping[str, TensorSettings]
) -> AnswerBounds | None:
    """Return the check of the output at an index, None where the answer need not be finite.

    It must be for a model that takes finite numbers only, unless the settings of an input say
    otherwise: then a NaN may be the answer to a NaN.
    """
    if index < 0 or not any(described.finite for described in metadata.inputs):
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

    def check(self, inputs: Inputs, first_row: int) -> None:
        array = inputs.get(self.name)
        if array is None:  # an optional input that is left out
            return
        if self.allow_nan:
            infinite = np.isinf(array)
            if not infinite.any():
                return
        else:
            if are_finite(array):
                return
            infinite = ~np.isfinite(array)
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

    def check(self, inputs: Inputs, first_row: int) -> None:
        array = inputs.get(self.name)
        if array is None:
            return
        sequences = inputs.get(self.sequences)
        highest: float = math.inf
        if sequences is not None and self.axis < sequences.ndim:
            highest = sequences.shape[self.axis]
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


def _declared_lengths(described: InputDescription, specs: Mapping[str, TensorSpec]) -> _Lengths:
    sequences, axis = specs.get(described.lengths_of), described.lengths_axis
    if sequences is None or not (sequences.any_shape or axis < len(sequences.shape)):
        raise LoadError(
            f"its metadata say that input {described.name!r} has the lengths of axis {axis} of "
            f"{described.lengths_of!r}; its inputs are {', '.join(map(repr, specs))}"
        )
    return _Lengths(described.name, described.lengths_of, axis, 1)
