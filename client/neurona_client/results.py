"""Results of predictions: what a PredictResponse says, as attributes and as a sequence of rows."""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from neurona_client.errors import ServerError, WrongTaskError
from neurona_protos.prediction_pb2 import (
    DATA_TYPE_BFLOAT16,
    ClassificationRow,
    PredictResponse,
    RegressionRow,
    Tensor,
)
from neurona_protos.tensors import TensorError, to_array

_MAX_CACHED_LABELS = 1024
_PROBE_PROBABILITY = 0.25
_PROBE_BYTES = struct.pack("<f", _PROBE_PROBABILITY)


@dataclass(frozen=True, slots=True)
class ClassProbability:
    """One of the most probable classes of a row.

    Attributes:
        label: name of the class.
        probability: 0 to 1.
        index: position of the class in the model's output.
    """

    label: str
    probability: float
    index: int


class LabelCache:
    """Labels by response, so that most responses need not be parsed to read their label.

    A response with one row and one class ends with the four bytes of its probability; responses
    that agree in all bytes before have the same label.
    """

    def __init__(self) -> None:
        self._labels: dict[bytes, str] = {}

    def lookup(self, message: bytes | PredictResponse) -> str | None:
        """Return the label of an unparsed response; None: it must be parsed."""
        return self._labels.get(message[:-4]) if isinstance(message, bytes) else None

    def remember(self, message: bytes, parsed: PredictResponse) -> None:
        """Store the label of a response, if it has one row with one class and no outputs."""
        rows = parsed.classification.rows
        if len(rows) != 1 or len(rows[0].labels) != 1 or parsed.outputs:
            return
        prefix = message[:-4]
        if prefix not in self._labels and _only_probability_follows(prefix, parsed):
            if len(self._labels) >= _MAX_CACHED_LABELS:
                self._labels = {}
            self._labels[prefix] = rows[0].labels[0]


def _only_probability_follows(prefix: bytes, parsed: PredictResponse) -> bool:
    """Whether other bytes after the prefix change the probability and nothing else."""
    try:
        probe = PredictResponse.FromString(prefix + _PROBE_BYTES)
        probe_row, parsed_row = probe.classification.rows[0], parsed.classification.rows[0]
        if probe_row.probabilities[:] != [_PROBE_PROBABILITY]:
            return False
        probe_row.probabilities[:] = parsed_row.probabilities
    except (DecodeError, IndexError):
        return False
    return probe == parsed


_label_cache = LabelCache()


class Result(Sequence[Any]):
    """What all results have in common: immutable, a sequence of rows, equal if responses are.

    Attributes and items are parsed from the response when they are read.
    """

    __slots__ = ("_is_sample", "_message", "_row")

    def __init__(self, message: bytes | PredictResponse, *, is_sample: bool = False) -> None:
        """Wrap a response.

        Args:
            message: a PredictResponse, parsed or not.
            is_sample: the caller passed one sample without a batch axis, and gets outputs without.
        """
        self._message: bytes | PredictResponse = message
        self._row = -1  # of the whole batch; else the index of the row that this is the result of
        self._is_sample = is_sample

    @property
    def message(self) -> PredictResponse:
        """The protobuf message, for all rows.

        Raises:
            ServerError: the response is not a PredictResponse.
        """
        if isinstance(self._message, bytes):
            message = parse_predict_response(self._message)
            _label_cache.remember(self._message, message)
            self._message = message
        return self._message

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.message.model

    @property
    def version(self) -> int:
        """Number of the version that answered."""
        return self.message.version

    @property
    def outputs(self) -> Mapping[str, NDArray[Any]]:
        """Output tensors by name: with `raw_outputs`, or of a model without a task.

        Of one sample, or one row of a batch, they have no batch axis. An output whose first axis is
        not that of the rows, such as the state of a recurrent network, stays whole. BFLOAT16
        becomes float32.
        """
        arrays = {one.name: _tensor_to_array(one) for one in self.message.outputs}
        if self._row < 0 and not self._is_sample:
            return arrays
        rows = 1 if self._is_sample else _count_rows(self.message)
        return {
            name: array[max(self._row, 0)] if array.shape[:1] == (rows,) else array
            for name, array in arrays.items()
        }

    def __len__(self) -> int:
        if self._row >= 0 or self._is_sample:
            return 1
        rows = _count_rows(self.message)
        return 1 if rows is None else rows

    @overload
    def __getitem__(self, index: int) -> Self: ...
    @overload
    def __getitem__(self, index: slice) -> list[Self]: ...
    def __getitem__(self, index: int | slice) -> Self | list[Self]:
        count = len(self)
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(count))]
        if not -count <= index < count:
            raise IndexError(f"row {index} out of range: the result has {count} rows")
        if self._row >= 0 or self._is_sample:
            return self
        row = type(self)(self.message)
        row._row = index % count
        return row

    def __iter__(self) -> Iterator[Self]:
        return (self[row] for row in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Result):
            return NotImplemented
        same_rows = (self._row, self._is_sample) == (other._row, other._is_sample)
        return same_rows and self.message == other.message

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        state = (self.message.SerializeToString(), self._row, self._is_sample)
        return _unpickle, (type(self), *state)

    def __repr__(self) -> str:
        message = self.message
        text = f"{message.model} {message.version}"
        kind, count = message.WhichOneof("answer"), len(self)
        if count != 1:
            return f"<{type(self).__name__} of {text}: {count} rows>"
        if kind == "classification":
            row = self._classification_row()
            text += f": {row.labels[0]!r} {row.probabilities[0]:.4g}"
        elif kind == "regression":
            units = [value.unit for value in message.regression.values]
            values = self._regression_row().values
            pairs = [f"{v:.6g} {u}".strip() for v, u in zip(values, units, strict=False)]
            text += f": {', '.join(pairs)}"
        else:
            text += f": outputs {', '.join(repr(one.name) for one in message.outputs)}"
        return f"<{type(self).__name__} of {text}>"

    def _only_row(self, rows: Sequence[Any]) -> Any:
        if self._row >= 0:
            return rows[self._row]
        if len(rows) != 1:
            raise ValueError(f"result has {len(rows)} rows: take one of them, such as result[0]")
        return rows[0]

    def _classification_row(self) -> ClassificationRow:
        message = self.message
        if not message.HasField("classification"):
            raise WrongTaskError(f"model {message.model!r} does not classify")
        row: ClassificationRow = self._only_row(message.classification.rows)
        return row

    def _regression_row(self) -> RegressionRow:
        message = self.message
        if not message.HasField("regression"):
            raise WrongTaskError(f"model {message.model!r} does not return values")
        row: RegressionRow = self._only_row(message.regression.rows)
        return row


class ClassificationResult(Result):
    """The result of a model that classifies.

        result = client.classify("lenet5", pixels, top_k=3)
        result.label, result.probability        # of one sample
        [row.label for row in result]           # of a batch

    Attributes that belong to one row raise ValueError on a batch: take a row first.
    """

    __slots__ = ()

    @property
    def label(self) -> str:
        """Label of the most probable class."""
        label = _label_cache.lookup(self._message)
        return self._classification_row().labels[0] if label is None else label

    @property
    def probability(self) -> float:
        """Probability of the most probable class, 0 to 1."""
        return self._classification_row().probabilities[0]

    @property
    def top(self) -> tuple[ClassProbability, ...]:
        """The `top_k` most probable classes, most probable first."""
        row = self._classification_row()
        return tuple(map(ClassProbability, row.labels, row.probabilities, row.indices))


class RegressionResult(Result):
    """The result of a model that returns numbers.

        result = client.regress("rnn", [[5.0], [11.0], [16.0]])
        print(f"{result.value:.0f} {result.unit}")

    Attributes that belong to one row raise ValueError on a batch: take a row first.
    """

    __slots__ = ()

    @property
    def value(self) -> float:
        """The only predicted value, bounds of its interval aside.

        Raises:
            ValueError: the model returns several values for a row; see `values`.
        """
        values, quantiles = self.values, self._quantiles()
        if quantiles.count(0) != 1 or len(quantiles) != len(values):
            if len(values) != 1:
                raise ValueError(f"model returns {len(values)} values for a row: use .values")
            return values[0]
        return values[quantiles.index(0)]

    @property
    def interval(self) -> tuple[float, float] | None:
        """Lower and upper bound of the only value; None if the model returns no interval.

        Raises:
            ValueError: the model returns several values for a row; see `values`.
        """
        self.value  # noqa: B018 - raises the error
        quantiles = self._quantiles() if len(self.values) > 1 else []
        named = zip(quantiles, self.values, strict=False)
        bounds = sorted((quantile, value) for quantile, value in named if quantile)
        return (bounds[0][1], bounds[-1][1]) if len(bounds) > 1 else None

    @property
    def values(self) -> tuple[float, ...]:
        """All values of the row, the bounds of intervals too."""
        return tuple(self._regression_row().values)

    def _quantiles(self) -> list[float]:
        return [value.quantile for value in self.message.regression.values]

    @property
    def unit(self) -> str:
        """Unit of the first value; empty if the model has none."""
        values = self.message.regression.values
        return values[0].unit if values else ""

    @property
    def units(self) -> tuple[str, ...]:
        """Unit of each value."""
        return tuple(value.unit for value in self.message.regression.values)


class Prediction(ClassificationResult, RegressionResult):
    """The result of any model; attributes of another task raise WrongTaskError."""

    __slots__ = ()


def _count_rows(message: PredictResponse) -> int | None:
    """Return the number of rows; None if all outputs together are one: their first axes differ."""
    kind = message.WhichOneof("answer")
    if kind == "classification":
        return len(message.classification.rows)
    if kind == "regression":
        return len(message.regression.rows)
    sizes = {one.shape[0] for one in message.outputs if one.shape}
    if not message.outputs:
        return 0
    return sizes.pop() if len(sizes) == 1 else None


def parse_predict_response(message: bytes) -> PredictResponse:
    """Parse a response.

    Raises:
        ServerError: the bytes are not a PredictResponse.
    """
    try:
        return PredictResponse.FromString(message)
    except DecodeError as error:
        raise ServerError(f"response is not a neurona.v1.PredictResponse: {error}") from error


def bfloat16_to_float32(bits: NDArray[Any]) -> NDArray[np.float32]:
    """Convert bits of bfloat16, uint16, to float32; every value is exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _tensor_to_array(tensor: Tensor) -> NDArray[Any]:
    try:
        array = to_array(tensor)
    except TensorError as error:
        raise ServerError(f"response cannot be decoded: {error}") from error
    return bfloat16_to_float32(array) if tensor.dtype == DATA_TYPE_BFLOAT16 else np.asarray(array)


def _unpickle(kind: type[Result], message: bytes, row: int, is_sample: bool) -> Result:
    result = kind(message, is_sample=is_sample)
    result._row = row
    return result
