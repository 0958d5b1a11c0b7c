"""What a model takes and returns: names, dtypes and shapes, and the check of a request."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import dtype_name
from neurona_server.batching.request import ExclusiveGroup
from neurona_server.errors import InvalidArgumentError, LoadError, close_match, quoted
from neurona_server.models.repository.settings import DeclaredTensor, TensorSettings

Size = int | str | None  # fixed, free with a name, free without one
TensorType = tuple[DataType, tuple[int, ...]]  # of an array: dtype and shape


@dataclass(frozen=True)
class TensorSpec:
    """One input or output as the graph declares it."""

    name: str
    dtype: DataType
    shape: tuple[Size, ...]
    axes: tuple[str, ...] = ()
    """What the model's settings call the axes, those of fixed size too; () if they do not."""

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{dtype_name(self.dtype)} of shape [{sizes}]"


class Signature:
    """The inputs and outputs of a model.

    `batched` says that axis 0 of every tensor is the batch axis, so that the rows of
    several requests can share a run.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        optional: Sequence[TensorSpec] = (),
        *,
        batched: bool,
    ) -> None:
        self.inputs = tuple(inputs)
        self.optional = tuple(optional)
        self.outputs = tuple(outputs)
        self.batched = batched
        self._specs = {spec.name: spec for spec in self.inputs}
        self._optional = {spec.name: spec for spec in self.optional}
        # Names of free sizes that stand more than once: they must be the same everywhere.
        names = Counter(s for spec in self.inputs for s in spec.shape if isinstance(s, str))
        self._shared = {name for name, count in names.items() if count > 1}

    def check(self, inputs: Mapping[str, TensorType]) -> int:
        """The number of rows of `inputs`: their size along axis 0, or 1 without a batch axis.

        It looks at dtypes and shapes alone, so that nothing has to be decoded before.
        Raises InvalidArgumentError that names the input, what came and what was expected.
        """
        if inputs.keys() != self._specs.keys():
            self._check_optional(inputs)
        rows = 1
        leader = None  # the input that said how many rows there are
        sizes: dict[str, int] = {}
        for name, spec in self._specs.items():
            dtype, shape = inputs[name]
            if dtype != spec.dtype or not _fits(shape, spec.shape):
                came = TensorSpec(name, dtype, shape)
                raise InvalidArgumentError(f"input {name!r} is {came}; expected {spec}")
            for size, expected in zip(shape, spec.shape, strict=True):
                if expected in self._shared and sizes.setdefault(str(expected), size) != size:
                    came = TensorSpec(name, dtype, shape)
                    raise InvalidArgumentError(
                        f"input {name!r} is {came}: its {expected!r} is {size}, "
                        f"that of another input {sizes[str(expected)]}; expected equal sizes"
                    )
            if self.batched:
                if leader is None:
                    leader, rows = name, shape[0]
                elif shape[0] != rows:
                    raise InvalidArgumentError(
                        f"input {name!r} has {shape[0]} rows, input {leader!r} has {rows}; "
                        "expected equally many"
                    )
        return rows

    def group(self, inputs: Mapping[str, TensorType]) -> Hashable:
        """Requests of equal group can share a run: all their sizes but the rows are equal.

        A request with an optional input is a group by itself: what it brings is not by rows.
        Without a batch axis groups share nothing, but tell what a run of theirs costs.
        """
        if len(inputs) > len(self.inputs):
            return ExclusiveGroup(inputs.keys() & self._optional.keys())
        first = 1 if self.batched else 0
        return tuple([inputs[spec.name][1][first:] for spec in self.inputs])

    def _check_optional(self, inputs: Mapping[str, TensorType]) -> None:
        if self._specs.keys() - inputs.keys() or (
            inputs.keys() - self._specs.keys() - self._optional.keys()
        ):
            raise self._wrong_names(inputs)
        for name in inputs.keys() & self._optional.keys():
            dtype, shape = inputs[name]
            spec = self._optional[name]
            if dtype != spec.dtype or not _fits(shape, spec.shape):
                came = TensorSpec(name, dtype, shape)
                raise InvalidArgumentError(f"input {name!r} is {came}; expected {spec}")

    def _wrong_names(self, inputs: Mapping[str, TensorType]) -> InvalidArgumentError:
        expected = ", ".join(f"{spec.name!r} ({spec})" for spec in self.inputs)
        if self.optional:
            expected += ", and may have " + ", ".join(repr(spec.name) for spec in self.optional)
        came = ", ".join(quoted(name) for name in inputs) or "none"
        return InvalidArgumentError(f"the request has inputs {came}; expected {expected}")


def _fits(shape: tuple[int, ...], expected: tuple[Size, ...]) -> bool:
    if len(shape) != len(expected):
        return False
    for size, wanted in zip(shape, expected, strict=True):
        if isinstance(wanted, int):
            if size != wanted:
                return False
        elif size < 1:  # an empty batch, a sequence without a step: nothing to answer
            return False
    return True


def apply_declared_tensors(
    declared: Sequence[DeclaredTensor], role: str, specs: Sequence[TensorSpec]
) -> list[TensorSpec]:
    """The specs, with the sizes that are free in the graph and fixed by what is declared.

    A declaration that leaves a tensor out says nothing of it. Raises LoadError that names both
    where they differ.
    """
    by_name = {spec.name: spec for spec in specs}
    for one in declared:
        if one.role != role:
            continue
        if one.name not in by_name:
            raise LoadError(
                f"config.pbtxt has an {role} {one.name!r}; the graph's {role}s are "
                f"{[*by_name]}{close_match(one.name, by_name)}"
            )
        by_name[one.name] = _held(one, by_name[one.name])
    return list(by_name.values())


def _held(one: DeclaredTensor, spec: TensorSpec) -> TensorSpec:
    sizes: tuple[Size, ...] = spec.shape
    if one.shape is not None:
        sizes = tuple(None if size < 0 else size for size in one.shape)
    said = TensorSpec(one.name, one.dtype or spec.dtype, sizes)
    fits = len(sizes) == len(spec.shape) and all(
        size is None or not isinstance(own, int) or size == own
        for size, own in zip(sizes, spec.shape, strict=True)
    )
    if said.dtype != spec.dtype or not fits:
        raise LoadError(f"config.pbtxt has the {one.role} {one.name!r} as {said}; it is {spec}")
    narrowed = [own if size is None else size for size, own in zip(sizes, spec.shape, strict=True)]
    return replace(spec, shape=tuple(narrowed))


def name_axes(
    role: str, specs: Sequence[TensorSpec], said: Mapping[str, TensorSettings]
) -> list[TensorSpec]:
    """The specs with the names that their axes are given; of what is passed over in `said`,
    `check_names` speaks.

    A free size takes the name, and as in the graph equal names of inputs are equal sizes.
    Raises LoadError when the number of axes is wrong.
    """
    named = []
    for spec in specs:
        axes = said[spec.name].axes if spec.name in said else ()
        if axes and len(axes) != len(spec.shape):
            raise LoadError(
                f"its settings name {len(axes)} axes of {role} {spec.name!r}, "
                f"which is {spec}; expected {len(spec.shape)}"
            )
        if axes:
            sizes = [
                size if isinstance(size, int) or not name else name
                for size, name in zip(spec.shape, axes, strict=True)
            ]
            named.append(replace(spec, shape=tuple(sizes), axes=axes))
        else:
            named.append(spec)
    return named


def check_names(role: str, specs: Sequence[TensorSpec], said: Mapping[str, object]) -> None:
    """Raises LoadError when settings are about a tensor that the model does not have."""
    names = [spec.name for spec in specs]
    for name in said:
        if name not in names:
            raise LoadError(
                f"its settings have an {role} {name!r}; its {role}s are {names}"
                f"{close_match(name, names)}"
            )
