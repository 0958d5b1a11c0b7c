"""Labels of answers that are like one that was read before, in all but the probability."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
from google.protobuf.message import DecodeError

from neurona_client.errors import ServerError, WrongTaskError
from neurona_client.inputs import Array, from_bfloat16
from neurona_protos.prediction_pb2 import (
    DATA_TYPE_BFLOAT16,
    ClassificationRow,
    PredictResponse,
    RegressionRow,
    Tensor,
)
from neurona_protos.tensors import TensorError, to_array


@dataclass(frozen=True, slots=True)
class Class:
    """One of the best classes.  index: its place among the model's classes."""

    label: str
    probability: float
    index: int


class Answer(Sequence[Any]):
    """What all answers have in common; immutable, equal by what the server said."""

    __slots__ = ("_message", "_row", "_sample")

    def __init__(self, message: bytes | PredictResponse, *, sample: bool = False) -> None:
        """sample: the caller gave one sample without a batch axis, and gets outputs without."""
        self._message: bytes | PredictResponse = message
        self._row = -1  # of a row's own answer, which it is
        self._sample = sample

    @property
    def message(self) -> PredictResponse:
        """All of it, as the server said it. Raises ServerError if it is no PredictResponse."""
        if isinstance(self._message, bytes):
            message = read(self._message)
            labels.learn(self._message, message)
            self._message = message
        return self._message

    @property
    def model(self) -> str:
        return self.message.model

    @property
    def version(self) -> int:
        """The version that answered."""
        return self.message.version

    @property
    def outputs(self) -> Mapping[str, Array]:
        """The model's output tensors by name: with raw_outputs, or of a model without a task.

        Of one sample, or one row of a batch, without the batch axis. BFLOAT16 is given as float32.
        """
        arrays = {one.name: _array(one) for one in self.message.outputs}
        if self._row < 0 and not self._sample:
            return arrays
        row = max(self._row, 0)
        return {name: array[row] if array.ndim else array for name, array in arrays.items()}

    def __len__(self) -> int:
        if self._row >= 0 or self._sample:
            return 1
        message = self.message
        kind = message.WhichOneof("answer")
        if kind == "classification":
            return len(message.classification.rows)
        if kind == "regression":
            return len(message.regression.rows)
        return max((one.shape[0] for one in message.outputs if one.shape), default=0)

    @overload
    def __getitem__(self, index: int) -> Self: ...
    @overload
    def __getitem__(self, index: slice) -> list[Self]: ...
    def __getitem__(self, index: int | slice) -> Self | list[Self]:
        count = len(self)
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(count))]
        if not -count <= index < count:
            raise IndexError(f"row {index} of {count}")
        if self._row >= 0:
            return self
        row = type(self)(self.message)
        row._row = index % count
        return row

    def __iter__(self) -> Iterator[Self]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Answer):
            return NotImplemented
        same = (self._row, self._sample) == (other._row, other._sample)
        return same and self.message == other.message

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        state = (self.message.SerializeToString(), self._row, self._sample)
        return _restored, (type(self), *state)

    def __repr__(self) -> str:
        message = self.message
        said = f"{message.model} {message.version}"
        kind, count = message.WhichOneof("answer"), len(self)
        if count != 1:
            return f"<{type(self).__name__} of {said}: {count} rows>"
        if kind == "classification":
            best = _best(self._class_row())
            said += f": {best.label!r} {best.probability:.4g}"
        elif kind == "regression":
            units = [one.unit for one in message.regression.values]
            values = self._value_row().values
            named = [f"{v:.6g} {u}".strip() for v, u in zip(values, units, strict=False)]
            said += f": {', '.join(named)}"
        else:
            said += f": outputs {', '.join(repr(one.name) for one in message.outputs)}"
        return f"<{type(self).__name__} of {said}>"

    def _only(self, rows: Sequence[Any]) -> Any:
        if self._row >= 0:
            return rows[self._row]
        if len(rows) != 1:
            raise ValueError(f"the answer has {len(rows)} rows: take one of them, as answer[0]")
        return rows[0]

    def _class_row(self) -> ClassificationRow:
        message = self.message
        if not message.HasField("classification"):
            raise WrongTaskError(f"model {message.model!r} does not classify")
        row: ClassificationRow = self._only(message.classification.rows)
        return row

    def _value_row(self) -> RegressionRow:
        message = self.message
        if not message.HasField("regression"):
            raise WrongTaskError(f"model {message.model!r} gives no values")
        row: RegressionRow = self._only(message.regression.rows)
        return row


class Classified(Answer):
    """The answer of a model that classifies."""

    __slots__ = ()

    @property
    def label(self) -> str:
        """The best class."""
        known = labels.find(self._message)
        return self._class_row().labels[0] if known is None else known

    @property
    def probability(self) -> float:
        """Of the best class."""
        return self._class_row().probabilities[0]

    @property
    def top(self) -> tuple[Class, ...]:
        """The `top_k` best classes, best first."""
        row = self._class_row()
        return tuple(map(Class, row.labels, row.probabilities, row.indices))


class Regressed(Answer):
    """The answer of a model that gives numbers."""

    __slots__ = ()

    @property
    def value(self) -> float:
        """The only one; of several, see `values`."""
        values = self.values
        if len(values) != 1:
            raise ValueError(f"the model gives {len(values)} values: see .values")
        return values[0]

    @property
    def values(self) -> tuple[float, ...]:
        return tuple(self._value_row().values)

    @property
    def unit(self) -> str:
        """Of the first value; empty if the model does not say."""
        described = self.message.regression.values
        return described[0].unit if described else ""

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(one.unit for one in self.message.regression.values)


class Prediction(Classified, Regressed):
    """The answer of any model: what it does not have raises WrongTaskError."""

    __slots__ = ()


def _best(row: ClassificationRow) -> Class:
    return Class(row.labels[0], row.probabilities[0], row.indices[0])


def _array(tensor: Tensor) -> Array:
    try:
        array = to_array(tensor)
    except TensorError as error:
        raise ServerError(f"the answer cannot be read: {error}") from error
    return from_bfloat16(array) if tensor.dtype == DATA_TYPE_BFLOAT16 else np.asarray(array)


def _restored(kind: type[Answer], message: bytes, row: int, sample: bool) -> Answer:
    answer = kind(message, sample=sample)
    answer._row = row
    return answer


_MOST = 1024
_OTHER_PROBABILITY = 0.25
_OTHER = struct.pack("<f", _OTHER_PROBABILITY)


class Labels:
    """Of answers of one row with one class, by all of their bytes but the last four."""

    def __init__(self) -> None:
        self._labels: dict[bytes, str] = {}

    def find(self, message: bytes | PredictResponse) -> str | None:
        return self._labels.get(message[:-4]) if isinstance(message, bytes) else None

    def learn(self, message: bytes, answer: PredictResponse) -> None:
        rows = answer.classification.rows
        if len(rows) != 1 or len(rows[0].labels) != 1 or answer.outputs:
            return
        start = message[:-4]
        if start not in self._labels and _ends_with_its_probability(start, answer):
            if len(self._labels) >= _MOST:
                self._labels = {}
            self._labels[start] = rows[0].labels[0]


def _ends_with_its_probability(start: bytes, answer: PredictResponse) -> bool:
    """Whether other bytes behind the start change the probability and nothing else."""
    try:
        other = PredictResponse.FromString(start + _OTHER)
        theirs, own = other.classification.rows[0], answer.classification.rows[0]
        if theirs.probabilities[:] != [_OTHER_PROBABILITY]:
            return False
        theirs.probabilities[:] = own.probabilities
    except (DecodeError, IndexError):
        return False
    return other == answer


labels = Labels()


def read(message: bytes) -> PredictResponse:
    """Raises ServerError for what is none."""
    try:
        return PredictResponse.FromString(message)
    except DecodeError as error:
        raise ServerError(f"the answer is no neurona.v1.PredictResponse: {error}") from error
