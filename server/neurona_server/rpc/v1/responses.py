"""Writes the rows of a model's outputs as the bytes of a PredictResponse.

The common part of the responses of a batch is computed once, for the whole batch, and sliced by
row: a PredictResponse is concatenated from constant bytes and those of its numbers. It has the same
fields as a ClassifyResponse or a RegressResponse, and serves as these too.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from neurona_protos.prediction_pb2 import (
    Classification,
    ClassificationRow,
    DataType,
    PredictResponse,
    Regression,
    RegressionRow,
    Task,
    Tensor,
)
from neurona_protos.tensors import Array, encode
from neurona_protos.wire_format import header, length_delimited
from neurona_server.batching.batch import RowSlice
from neurona_server.batching.ranking import rank_rows, ranked_rows
from neurona_server.batching.request import Outputs
from neurona_server.errors import InvalidArgumentError
from neurona_server.models.model import Model
from neurona_server.rpc.flow_control import size_estimate_of

_DATA = Tensor.DATA_FIELD_NUMBER


def tensor_bytes(field: int, name: str, dtype: DataType, array: Array) -> list[bytes | memoryview]:
    """Return the `field` with the tensor, in pieces to be joined."""
    data = encode(name, array, dtype)
    head = _head(name, dtype, array.shape)
    if not len(data):
        return [header(field, len(head)), head]
    before = header(_DATA, len(data))
    return [header(field, len(head) + len(before) + len(data)), head, before, data]


@lru_cache(maxsize=1024)
def _head(name: str, dtype: DataType, shape: tuple[int, ...]) -> bytes:
    """Return a tensor without its data, which are its last field."""
    return Tensor(name=name, dtype=dtype, shape=shape).SerializeToString()


_CLASSIFICATION = PredictResponse.CLASSIFICATION_FIELD_NUMBER
_REGRESSION = PredictResponse.REGRESSION_FIELD_NUMBER
_OUTPUTS = PredictResponse.OUTPUTS_FIELD_NUMBER
_CLASS_ROWS = Classification.ROWS_FIELD_NUMBER
_VALUE_ROWS = Regression.ROWS_FIELD_NUMBER
_PROBABILITIES = ClassificationRow.PROBABILITIES_FIELD_NUMBER
_VALUES = RegressionRow.VALUES_FIELD_NUMBER

_CLASS_BYTES, _VALUE_BYTES = 24, 16  # upper bounds: a class without its label, a value


class Best(NamedTuple):
    """The best class of each row of a batch."""

    classes: list[int]
    probabilities: bytes
    """Little-endian float32, one after the other."""


class PredictResponseWriter(NamedTuple):
    """The `ResponseWriter` of a PredictRequest."""

    encoder: "ResponseEncoder"
    top_k: int
    raw_outputs: bool

    def __call__(self, outputs: Outputs) -> bytes:
        return self.encoder.write(outputs, self.top_k, raw_outputs=self.raw_outputs)

    def write_each(self, part: RowSlice, rows: int) -> list[bytes]:
        """Return the responses to the requests of `rows` each that `part` combines."""
        return self.encoder.write_each(part, rows, self.top_k, raw_outputs=self.raw_outputs)

    def expected_bytes(self, rows: int) -> int:
        return self.encoder.expected_bytes(rows, self.top_k, raw_outputs=self.raw_outputs)

    def ranked_classes(self, _: int) -> int:
        return self.top_k if self.encoder.classifies and not self.raw_outputs else 0


class ResponseEncoder:
    """Writes the responses of one model.

    It does not refer to the model, because it is cached as long as the model exists.
    """

    def __init__(self, model: Model) -> None:
        self._position = model.answer
        self._softmax = model.softmax
        self._width = len(model.metadata.values) or 1
        self.classifies = model.metadata.task == Task.TASK_CLASSIFICATION
        self._regresses = model.metadata.task == Task.TASK_REGRESSION
        self._labels = list(model.metadata.labels)
        self._specs = model.signature.outputs
        self._head = PredictResponse(model=model.name, version=model.version).SerializeToString()
        self._single: dict[int, bytes] = {}  # by class: a response without its probability
        described = Regression(values=model.metadata.values).SerializeToString()
        self._described = described
        longest = max([len(label) for label in self._labels], default=0)
        self._class_bytes = 4 * longest + _CLASS_BYTES
        self._size_estimate = size_estimate_of(model)

    def write(self, outputs: Outputs, top_k: int, *, raw_outputs: bool) -> bytes:
        """Return a response. `top_k` is the number of classes of a classification, at least 1."""
        part = outputs if isinstance(outputs, RowSlice) else None
        pieces: list[bytes | memoryview] = [self._head]
        if self.classifies:
            if top_k == 1 and part is not None and part.rows == 1 and not raw_outputs:
                best = self._best(part)
                row = part.start
                selected = best.classes[row]
                head = self._single.get(selected) or self._add_single(selected)
                return head + best.probabilities[4 * row : 4 * row + 4]
            rows = self._rows(outputs, part, ("classes", top_k))
            pieces += [length_delimited(_CLASSIFICATION, b"".join(rows))]
        elif self._regresses:
            rows = self._rows(outputs, part, ("values", 0))
            pieces += [length_delimited(_REGRESSION, self._described + b"".join(rows))]
        if raw_outputs or not (self.classifies or self._regresses):
            for spec, array in zip(self._specs, outputs, strict=True):
                pieces += tensor_bytes(_OUTPUTS, spec.name, spec.dtype, np.asarray(array))
            response = b"".join(pieces)
            self._size_estimate.observe(outputs, len(response))
            return response
        return b"".join(pieces)

    def write_each(
        self, part: RowSlice, rows: int, top_k: int, *, raw_outputs: bool
    ) -> list[bytes]:
        """See `PredictResponseWriter.write_each`."""
        if self.classifies and top_k == 1 and rows == 1 and not raw_outputs:
            best, heads = self._best(part), self._single
            numbers = best.probabilities
            return [
                (heads.get(selected) or self._add_single(selected)) + numbers[4 * row : 4 * row + 4]
                for row, selected in enumerate(best.classes[part.start : part.stop], part.start)
            ]
        return [
            self.write(RowSlice(part.batch, start, rows), top_k, raw_outputs=raw_outputs)
            for start in range(part.start, part.stop, rows)
        ]

    def expected_bytes(self, rows: int, top_k: int, *, raw_outputs: bool) -> int:
        size = len(self._head)
        if self.classifies:
            size += rows * min(top_k, len(self._labels) or top_k) * self._class_bytes
        elif self._regresses:
            size += rows * _VALUE_BYTES * self._width
        if raw_outputs or not (self.classifies or self._regresses):
            size += int(rows * self._size_estimate.row_bytes)
        return size

    def _rows(self, outputs: Outputs, part: RowSlice | None, key: tuple[str, int]) -> list[bytes]:
        """Return the bytes of each row.

        The common part of two requests of a batch is written once for the whole batch; a request
        with other options costs no more than its own rows.
        """
        answer = outputs[self._position]
        if part is None:
            return self._write_rows(answer, key)
        cache = part.batch.cache
        shared: tuple[object, list[bytes]] | None = cache.get("rows")
        if shared is None and cache.setdefault(key, part.start) != part.start:
            all_rows = part.batch.outputs[self._position]
            shared = cache["rows"] = (key, self._write_rows(all_rows, key))
        if shared is None or shared[0] != key:
            return self._write_rows(answer, key)
        return shared[1][part.start : part.stop]

    def _write_rows(self, answer: Array, key: tuple[str, int]) -> list[bytes]:
        if key[0] == "values":
            return value_rows(answer)
        if (ranked := ranked_rows(answer)) is not None:
            ranked = ranked.softmax() if self._softmax else ranked
            best = slice(key[1])
            return _write_class_rows(ranked.indices[:, best], ranked.values[:, best], self._labels)
        return class_rows(self._probabilities(answer), self._labels, key[1])

    def _probabilities(self, answer: Array) -> Array:
        if not answer.shape[1]:  # of inputs with an axis of length 0
            raise InvalidArgumentError(
                f"the answer to these inputs has shape {[*answer.shape]} (expected 1 class or more)"
            )
        return softmax(answer) if self._softmax else answer

    def _best(self, part: RowSlice) -> Best:
        cache = part.batch.cache
        best: Best | None = cache.get("best")
        if best is None:
            answer = part.batch.outputs[self._position]
            if (ranked := ranked_rows(answer)) is not None:
                ranked = ranked.softmax() if self._softmax else ranked
                classes, selected = ranked.indices[:, 0], ranked.values[:, 0]
            else:
                probabilities = self._probabilities(answer)
                classes = _ranked(probabilities).argmax(axis=1)
                selected = probabilities[np.arange(len(classes)), classes]
            best = Best(classes.tolist(), selected.astype("<f4").tobytes())
            cache["best"] = best
        return best

    def _add_single(self, selected: int) -> bytes:
        row = _class_row([selected], self._labels) + header(_PROBABILITIES, 4)
        length = len(row) + 4
        inner = header(_CLASS_ROWS, length)
        outer = header(_CLASSIFICATION, len(inner) + length)
        self._single[selected] = head = self._head + outer + inner + row
        return head


def softmax(logits: Array) -> Array:
    """Return the probabilities of each row of (rows, classes), in float32 or better.

    A row with infinity or NaN has probabilities that are NaN.
    """
    logits = logits.astype(np.promote_types(logits.dtype, np.float32), copy=False)
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))  # at most 1
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def class_rows(probabilities: Array, labels: Sequence[str], top_k: int) -> list[bytes]:
    """Return the `top_k` best classes of each row of (rows, classes), as `Classification.rows`.

    Equal probabilities keep the order of their classes, and NaN is last. A class without a label
    has its index as its name.
    """
    ranked = _ranked(probabilities)
    classes = ranked.argmax(axis=1)[:, np.newaxis] if top_k == 1 else rank_rows(-ranked, top_k)
    selected = np.take_along_axis(probabilities, classes, axis=1)
    return _write_class_rows(classes, selected, labels)


def _write_class_rows(classes: Array, selected: Array, labels: Sequence[str]) -> list[bytes]:
    """Return the rows of classes and their probabilities, both of shape (rows, count)."""
    size = 4 * classes.shape[1]
    data = selected.astype("<f4").tobytes()
    tail = header(_PROBABILITIES, size)
    return [
        length_delimited(
            _CLASS_ROWS, _class_row(row, labels) + tail + data[size * n : size * (n + 1)]
        )
        for n, row in enumerate(classes.tolist())
    ]


def value_rows(values: Array) -> list[bytes]:
    """Return the values of each row of (rows, values) or (rows,), as `Regression.rows`."""
    if values.ndim == 1:
        values = values[:, np.newaxis]
    count, width = values.shape
    size = 8 * width
    data = values.astype("<f8").tobytes()
    inner = header(_VALUES, size) if width else b""
    head = header(_VALUE_ROWS, len(inner) + size) + inner
    return [head + data[size * n : size * (n + 1)] for n in range(count)]


def _ranked(probabilities: Array) -> Array:
    if np.isnan(probabilities).any():
        return np.where(np.isnan(probabilities), -np.inf, probabilities)
    return probabilities


def _class_row(classes: Sequence[int], labels: Sequence[str]) -> bytes:
    """Return a ClassificationRow without its probabilities."""
    names = [labels[i] if i < len(labels) else str(i) for i in classes]
    return ClassificationRow(labels=names, indices=classes).SerializeToString()
