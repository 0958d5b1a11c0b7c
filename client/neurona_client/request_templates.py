"""How requests of one kind are written: what is the same in all of them is written once.

A plan belongs to a model, version or label, and wishes (top_k and so on). It writes a
PredictRequest from parts that it keeps for each shape of the input, and the array's own bytes.
"""

from typing import Any, NamedTuple

import numpy as np

from neurona_client.descriptions import Description
from neurona_client.errors import InvalidInputError
from neurona_client.inputs import Inputs, Ready, ready, unchecked
from neurona_protos.prediction_pb2 import (
    DataType,
    PredictRequest,
    PredictResponse,
    Priority,
    Tensor,
)
from neurona_protos.tensors import NUMPY_DTYPES, TensorError, encode
from neurona_protos.wire_format import (
    fields,
    header,
    length_delimited,
    read_varint,
    signed_varint,
    varint,
)

PRIORITIES = {
    "normal": Priority.PRIORITY_NORMAL,
    "high": Priority.PRIORITY_HIGH,
    "low": Priority.PRIORITY_LOW,
}
_MOST_SHAPES = 256  # kept of a plan
_INPUTS = PredictRequest.INPUTS_FIELD_NUMBER


_Which = tuple[str, int | None, str | None]
"""Model, version and label."""


class Wish(NamedTuple):
    """What a call asks for besides its inputs."""

    model: str
    version: int | None
    label: str | None
    top_k: int
    raw_outputs: bool
    priority: str

    def check(self) -> None:
        """Raises InvalidInputError."""
        if self.version is not None and self.label is not None:
            raise InvalidInputError("version and label are both given; expected one of them")
        if self.priority not in PRIORITIES:
            raise InvalidInputError(
                f"the priority is {self.priority!r}; expected one of {', '.join(PRIORITIES)}"
            )
        if not 1 <= self.top_k < 2**32:
            raise InvalidInputError(f"top_k is {self.top_k}; expected at least 1")
        if self.version is not None and not -(2**63) <= self.version < 2**63:
            raise InvalidInputError(f"the version is {self.version}; expected 64 bits at the most")


class Written(NamedTuple):
    """A PredictRequest in bytes.  single: the answer has one row that was given no axis."""

    message: bytes
    single: bool


class Plan:
    """described: None where the server does not describe the model to this client."""

    def __init__(self, wish: Wish, described: Description | None) -> None:
        wish.check()
        self.wish = wish
        self.described = described
        self.task = "" if described is None else described.task
        self.starts: set[bytes] = set()
        """How answers begin that came before."""
        head = PredictRequest(model=wish.model, label=wish.label)
        if wish.version is not None:
            head.version = wish.version
        self._head = head.SerializeToString()
        self._tail = PredictRequest(
            top_k=wish.top_k if wish.top_k > 1 else 0,
            raw_outputs=wish.raw_outputs,
            priority=PRIORITIES[wish.priority],
        ).SerializeToString()
        self._shapes: dict[tuple[int, ...], tuple[bytes, bool]] = {}
        # What needs no look at the description: an array of the dtype of the only input.
        self._dtype: np.dtype[Any] | None = None
        if described is not None and len(described.inputs) == 1:
            dtype = NUMPY_DTYPES.get(described.inputs[0].number)
            if dtype is not None and dtype.kind != "O":
                self._dtype = dtype

    def write(self, inputs: Inputs) -> Written:
        """Raises InvalidInputError."""
        quick = self.quick(inputs)
        if quick is not None:
            return quick
        if self.described is None:
            return Written(self._join(unchecked(inputs)), single=False)
        tensors, single = ready(self.described, inputs)
        if type(inputs) is np.ndarray and inputs.dtype == self._dtype:
            self._learn(inputs.shape, tensors, single)
        return Written(self._join(tensors), single)

    def quick(self, inputs: object) -> Written | None:
        """Of an array of a dtype and a shape that came before; else None."""
        if type(inputs) is np.ndarray and inputs.dtype == self._dtype:
            known = self._shapes.get(inputs.shape)
            if known is not None:
                return Written(known[0] + inputs.tobytes() + self._tail, known[1])
        return None

    def _join(self, tensors: Ready) -> bytes:
        pieces: list[bytes | memoryview] = [self._head]
        for name, number, array in tensors:
            try:
                data = encode(name, array, number)
            except TensorError as error:
                raise InvalidInputError(str(error)) from error
            pieces += (_tensor_head(name, number, array.shape, len(data)), data)
        pieces.append(self._tail)
        return b"".join(pieces)

    def _learn(self, shape: tuple[int, ...], tensors: Ready, single: bool) -> None:
        if len(self._shapes) >= _MOST_SHAPES:
            self._shapes = {}  # a new one: another thread may be reading the old
        name, number, array = tensors[0]
        head = self._head + _tensor_head(name, number, array.shape, array.nbytes)
        self._shapes[shape] = (head, single)


def _tensor_head(name: str, number: DataType, shape: tuple[int, ...], nbytes: int) -> bytes:
    """All of a tensor in a request that stands before its data."""
    own = length_delimited(Tensor.NAME_FIELD_NUMBER, name.encode())
    own += varint(Tensor.DTYPE_FIELD_NUMBER << 3) + varint(number)
    if shape:
        own += length_delimited(Tensor.SHAPE_FIELD_NUMBER, b"".join(map(signed_varint, shape)))
    if nbytes:
        own += header(Tensor.DATA_FIELD_NUMBER, nbytes)
    return header(_INPUTS, len(own) + nbytes) + own


def _version(answer: bytes) -> int:
    for field, start, _ in fields(answer, 0, len(answer)):
        if field == PredictResponse.VERSION_FIELD_NUMBER:
            return read_varint(answer, start)[0]
    return 0


class Plans:
    """Of one client: those that were used last, by what they are for. Any thread may ask."""

    MOST = 1024

    def __init__(self) -> None:
        self.known: dict[tuple[object, ...], Plan] = {}
        """By wish; to be read only, and by those in a hurry."""
        self._described: dict[_Which, Description | None] = {}
        self._versions: dict[_Which, set[int]] = {}  # that have answered

    def get(self, wish: Wish) -> Plan | None:
        """None: the model must be described first."""
        plan = self.known.get(wish)
        key = wish[:3]
        if plan is None and key in self._described:
            return self._made(wish, self._described[key])
        return plan

    def learn(self, wish: Wish, described: Description | None) -> Plan:
        if len(self._described) >= self.MOST:
            self._described = {}
            self._versions = {}
        self._described[wish[:3]] = described
        return self._made(wish, described)

    def is_new(self, plan: Plan, answer: bytes) -> bool:
        """Whether an answer is of a version that has not answered before."""
        start = answer[: answer[1] + 4] if len(answer) > 1 else b""  # the model and the version
        if start in plan.starts:
            return False
        version = _version(answer)
        seen = self._versions.setdefault(plan.wish[:3], set())
        if plan.described is not None:
            seen.add(plan.described.version)
        if version < 128:
            plan.starts.add(start)
        if version in seen or plan.described is None:
            return False
        if len(seen) >= self.MOST:
            seen.clear()
        seen.add(version)
        return True

    def forget(self, wish: Wish) -> None:
        """What is known of the model may be outdated."""
        key = wish[:3]
        self._described.pop(key, None)
        for known in list(self.known):
            if known[:3] == key:
                self.known.pop(known, None)

    def _made(self, wish: Wish, described: Description | None) -> Plan:
        if len(self.known) >= self.MOST:
            self.known = {}
        self.known[wish] = plan = Plan(wish, described)
        return plan
