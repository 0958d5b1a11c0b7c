"""The signature of a model: names, dtypes and shapes of its inputs and outputs."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import dtype_name
from neurona_server.batching.request import ExclusiveGroup
from neurona_server.errors import InvalidArgumentError, LoadError, close_match, quoted
from neurona_server.models.repository.settings import DeclaredTensor, TensorSettings

Size = int | str | None
"""Size of an axis: fixed, free with a name, or free without one."""

TensorType = tuple[DataType, tuple[int, ...]]
"""Dtype and shape of an array."""

_UNKNOWN_SIZE = re.compile(
    r"(p2o\.)?(none|null|nil|nan|any|unk|unknown|undefined|unspecified|dynamic|dynamicdimension"
    r"|free|variable)?[\W\d_]*",
    re.IGNORECASE,
)


def means_unknown_size(name: str) -> bool:
    """Return whether the name of a size is what a converter writes for one that it does not know.

    Such as "?", "-1", "None", "unk__7" (tf2onnx) or "DynamicDimension.0" (Paddle2ONNX): equal ones
    do not mean equal sizes.
    """
    return _UNKNOWN_SIZE.fullmatch(name) is not None


@dataclass(frozen=True)
class TensorSpec:
    """One input or output as the graph declares it."""

    name: str
    dtype: DataType
    shape: tuple[Size, ...]
    axes: tuple[str, ...] = ()
    """Names of all axes from the model's settings, () if they have none."""

    any_shape: bool = False
    """Whether it has no declared shape, not even a number of axes; `shape` is () then."""

    def __str__(self) -> str:
        if self.any_shape:
            return f"{dtype_name(self.dtype)} of any shape"
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{dtype_name(self.dtype)} of shape [{sizes}]"


class Signature:
    """The inputs and outputs of a model.

    Attributes:
        inputs: The required inputs.
        outputs: The outputs.
        optional: The inputs that a request may leave out.
        batched: Whether axis 0 of every tensor is the batch axis, so that the rows of several
            requests can share a run.
        group_sequences: Of a recurrent model, checks the sequences of a request and returns its
            group; None for other models.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        optional: Sequence[TensorSpec] = (),
        *,
        batched: bool,
        independent_names: Collection[str] = (),
    ) -> None:
        """Create the signature.

        Args:
            inputs: See above.
            outputs: See above.
            optional: See above.
            batched: See above.
            independent_names: Names of sizes that need not be equal, although they occur in
                several places.
        """
        self.inputs = tuple(inputs)
        self.optional = tuple(optional)
        self.outputs = tuple(outputs)
        self.batched = batched
        self.group_sequences: Callable[[Mapping[str, TensorType]], Hashable] | None = None
        self._specs = {spec.name: spec for spec in self.inputs}
        self._optional = {spec.name: spec for spec in self.optional}
        self._shared = shared_names(self.inputs) - {*independent_names}

    def check(self, inputs: Mapping[str, TensorType]) -> int:
        """Return the number of rows of a request: the size of axis 0, or 1 without a batch axis.

        Dtypes and shapes are enough, so that nothing has to be decoded before.

        Axes may have length 0, except the batch axis.

        Raises:
            InvalidArgumentError: An input is missing, unknown, or has a wrong dtype or shape.
        """
        if inputs.keys() != self._specs.keys():
            self._check_optional(inputs)
        rows = 1
        first_name = None  # the input that determines the number of rows
        sizes: dict[str, int] = {}
        for name, spec in self._specs.items():
            dtype, shape = inputs[name]
            if dtype != spec.dtype or not _fits(shape, spec):
                actual = TensorSpec(name, dtype, shape)
                raise InvalidArgumentError(f"input {name!r} is {actual} (expected {spec})")
            if self.batched and not (shape and shape[0]):
                actual = TensorSpec(name, dtype, shape)
                problem = "no row" if shape else "no batch axis"
                raise InvalidArgumentError(
                    f"input {name!r} is {actual}: it has {problem} (expected 1 row or more along "
                    "axis 0)"
                )
            for size, expected in zip(shape, spec.shape, strict=not spec.any_shape):
                if expected in self._shared and sizes.setdefault(str(expected), size) != size:
                    actual = TensorSpec(name, dtype, shape)
                    raise InvalidArgumentError(
                        f"input {name!r} is {actual}: its {expected!r} is {size}, "
                        f"that of another input {sizes[str(expected)]} (expected equal sizes)"
                    )
            if self.batched:
                if first_name is None:
                    first_name, rows = name, shape[0]
                elif shape[0] != rows:
                    raise InvalidArgumentError(
                        f"input {name!r} has {shape[0]} rows, input {first_name!r} has {rows} "
                        "(expected equal numbers)"
                    )
        return rows

    def group(self, inputs: Mapping[str, TensorType]) -> Hashable:
        """Return the key of requests that can share a run: all sizes except the rows.

        A request with an optional input shares with none, since that input has no rows. Without
        a batch axis no requests share a run, but runs of one group have the same cost. Requests
        of a recurrent model share runs with other lengths, too.

        Raises:
            InvalidArgumentError: A sequence of a recurrent model has no step.
        """
        group = None if self.group_sequences is None else self.group_sequences(inputs)
        if len(inputs) > len(self.inputs):
            return ExclusiveGroup(inputs.keys() & self._optional.keys())
        if group is not None:
            return group
        first = 1 if self.batched else 0
        return tuple([inputs[spec.name][1][first:] for spec in self.inputs])

    def _check_optional(self, inputs: Mapping[str, TensorType]) -> None:
        if self._specs.keys() - inputs.keys() or (
            inputs.keys() - self._specs.keys() - self._optional.keys()
        ):
            raise self._wrong_names_error(inputs)
        for name in inputs.keys() & self._optional.keys():
            dtype, shape = inputs[name]
            spec = self._optional[name]
            if dtype != spec.dtype or not _fits(shape, spec):
                actual = TensorSpec(name, dtype, shape)
                raise InvalidArgumentError(f"input {name!r} is {actual} (expected {spec})")

    def _wrong_names_error(self, inputs: Mapping[str, TensorType]) -> InvalidArgumentError:
        expected = ", ".join(f"{spec.name!r} ({spec})" for spec in self.inputs)
        if self.optional:
            expected += ", and optionally " + ", ".join(repr(spec.name) for spec in self.optional)
        names = ", ".join(quoted(name) for name in inputs) or "none"
        return InvalidArgumentError(f"the request has inputs {names} (expected {expected})")


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    if min(shape, default=0) < 0:
        return False
    if spec.any_shape:
        return True
    if len(shape) != len(spec.shape):
        return False
    for size, expected_size in zip(shape, spec.shape, strict=True):
        if isinstance(expected_size, int) and size != expected_size:
            return False
    return True


def shared_names(inputs: Sequence[TensorSpec]) -> set[str]:
    """Return the names of free sizes that occur more than once: these sizes must be equal."""
    names = Counter(size for spec in inputs for size in spec.shape if isinstance(size, str))
    return {name for name, count in names.items() if count > 1 and not means_unknown_size(name)}


def apply_declared_tensors(
    declared: Sequence[DeclaredTensor],
    role: str,
    specs: Sequence[TensorSpec],
    graph_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> list[TensorSpec]:
    """Return the specs with sizes that are free in the graph and fixed by a declaration.

    Tensors without a declaration are returned unchanged. `graph_shapes` are the shapes of those
    that have another one in the graph than in requests.

    Raises:
        LoadError: A declaration contradicts the graph.
    """
    by_name = {spec.name: spec for spec in specs}
    for tensor in declared:
        if tensor.role != role:
            continue
        if tensor.name not in by_name:
            raise LoadError(
                f"config.pbtxt has an {role} {tensor.name!r}; the graph's {role}s are "
                f"{[*by_name]}{close_match(tensor.name, by_name)}"
            )
        shape = (graph_shapes or {}).get(tensor.name, tensor.shape)
        by_name[tensor.name] = _apply_declaration(tensor, shape, by_name[tensor.name])
    return list(by_name.values())


def _apply_declaration(
    tensor: DeclaredTensor, shape: tuple[int, ...] | None, spec: TensorSpec
) -> TensorSpec:
    sizes: tuple[Size, ...] = spec.shape
    if shape is not None:
        sizes = tuple(None if size < 0 else size for size in shape)
    declared = TensorSpec(tensor.name, tensor.dtype or spec.dtype, sizes)
    if spec.any_shape and tensor.shape is not None and declared.dtype == spec.dtype:
        return replace(spec, shape=sizes, any_shape=False)
    fits = len(sizes) == len(spec.shape) and all(
        size is None or not isinstance(graph_size, int) or size == graph_size
        for size, graph_size in zip(sizes, spec.shape, strict=True)
    )
    if declared.dtype != spec.dtype or not fits:
        raise LoadError(
            f"config.pbtxt declares the {tensor.role} {tensor.name!r} as {declared} "
            f"(expected {spec}, as in the graph)"
        )
    narrowed = [
        graph_size if size is None else size
        for size, graph_size in zip(sizes, spec.shape, strict=True)
    ]
    return replace(spec, shape=tuple(narrowed))


def name_axes(
    role: str, specs: Sequence[TensorSpec], settings: Mapping[str, TensorSettings]
) -> list[TensorSpec]:
    """Return the specs with the names that the settings give to their axes.

    A free size takes the name; as in the graph, equal names of inputs mean equal sizes.

    Raises:
        LoadError: The number of names differs from the number of axes.
    """
    renamed = []
    for declared in specs:
        spec = declared
        axes = settings[spec.name].axes if spec.name in settings else ()
        if axes and spec.any_shape:
            spec = replace(spec, shape=(None,) * len(axes), any_shape=False)
        if axes and len(axes) != len(spec.shape):
            raise LoadError(
                f"its settings name {len(axes)} axes of {role} {spec.name!r}, "
                f"which is {spec} (expected {len(spec.shape)} names)"
            )
        if axes:
            sizes = [
                size if isinstance(size, int) or not name else name
                for size, name in zip(spec.shape, axes, strict=True)
            ]
            renamed.append(replace(spec, shape=tuple(sizes), axes=axes))
        else:
            renamed.append(spec)
    return renamed


def check_names(role: str, specs: Sequence[TensorSpec], settings: Mapping[str, object]) -> None:
    """Raise LoadError if there are settings for a tensor that the model does not have."""
    names = [spec.name for spec in specs]
    for name in settings:
        if name not in names:
            raise LoadError(
                f"its settings have an {role} {name!r}; its {role}s are {names}"
                f"{close_match(name, names)}"
            )
