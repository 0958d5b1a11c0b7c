"""What a model takes and gives, and whether a request's inputs fit."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES, dtype_name
from neurona_server.batching.request import Array, Inputs
from neurona_server.errors import InvalidError

Size = int | str | None  # fixed, free with a name, free without one


@dataclass(frozen=True)
class TensorSpec:
    """One input or output as the graph declares it."""

    name: str
    dtype: DataType
    shape: tuple[Size, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{dtype_name(self.dtype)} of shape [{sizes}]"


class Signature:
    """The inputs and outputs of a model.

    `batched` says that axis 0 of every tensor is the batch axis, so that the rows of
    several requests can share a run.
    """

    def __init__(
        self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, batched: bool
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.batched = batched
        self._specs = {spec.name: spec for spec in self.inputs}
        self._dtypes = {spec.name: NUMPY_DTYPES[spec.dtype] for spec in self.inputs}
        # Names of free sizes that stand more than once: they must be the same everywhere.
        names = Counter(s for spec in self.inputs for s in spec.shape if isinstance(s, str))
        self._shared = {name for name, count in names.items() if count > 1}

    def check(self, inputs: Inputs) -> int:
        """The number of rows of `inputs`: their size along axis 0, or 1 without a batch axis.

        Raises InvalidError that names the input, what came and what was expected.
        """
        if inputs.keys() != self._specs.keys():
            raise self._wrong_names(inputs)
        rows = 1
        leader = None  # the input that said how many rows there are
        sizes: dict[str, int] = {}
        for name, spec in self._specs.items():
            array = inputs[name]
            if array.dtype != self._dtypes[name] or not self._fits(array, spec):
                raise InvalidError(f"input {name!r} is {describe(array)}; expected {spec}")
            for size, expected in zip(array.shape, spec.shape, strict=True):
                if expected in self._shared and sizes.setdefault(str(expected), size) != size:
                    raise InvalidError(
                        f"input {name!r} is {describe(array)}: its {expected!r} is {size}, "
                        f"that of another input {sizes[str(expected)]}; expected equal sizes"
                    )
            if self.batched:
                if leader is None:
                    leader, rows = name, array.shape[0]
                elif array.shape[0] != rows:
                    raise InvalidError(
                        f"input {name!r} has {array.shape[0]} rows, input {leader!r} has {rows}; "
                        "expected equally many"
                    )
        return rows

    def group(self, inputs: Inputs) -> Hashable:
        """Requests of equal group can share a run: all their sizes but the rows are equal."""
        return tuple([inputs[spec.name].shape[1:] for spec in self.inputs])

    @staticmethod
    def _fits(array: Array, spec: TensorSpec) -> bool:
        if array.ndim != len(spec.shape):
            return False
        for size, expected in zip(array.shape, spec.shape, strict=True):
            if isinstance(expected, int):
                if size != expected:
                    return False
            elif size == 0:  # an empty batch, a sequence without a step: nothing to answer
                return False
        return True

    def _wrong_names(self, inputs: Inputs) -> InvalidError:
        expected = ", ".join(f"{spec.name!r} ({spec})" for spec in self.inputs)
        came = ", ".join(repr(name) for name in inputs) or "none"
        return InvalidError(f"the request has inputs {came}; expected {expected}")


def describe(array: Array) -> str:
    kind = "STRING" if array.dtype == object else str(array.dtype)
    for number, dtype in NUMPY_DTYPES.items():
        if dtype == array.dtype:
            kind = dtype_name(number)
    return f"{kind} of shape {list(array.shape)}"
