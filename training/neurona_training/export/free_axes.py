"""Which axes of a module's inputs are of any size, and the sizes with which it is traced."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from neurona_training.errors import ExportError
from neurona_training.export.check_inputs import BATCH

# By input, or of the only one: the name of each free axis by its index, or a name for each axis
# in order with None for those of one size. A torch.export.Dim has a name and limits.
AxisNames = Mapping[int, str | Dim] | Sequence[str | Dim | None]

_TRACED_SIZES = (3, 2, 5, 7, 11, 13)  # rows; not 1, which torch takes for a size that is always 1
_LARGEST = 1 << 40


def read_axes(
    tensors: Mapping[str, Tensor], axes: AxisNames | Mapping[str, AxisNames] | None
) -> tuple[dict[str, tuple[str, ...]], dict[str, range]]:
    """Reads which axes are free.

    Args:
        tensors: the example by input.
        axes: see `module_export.export`.

    Returns:
        By input the name of each free axis, "" for the others; by name the limits of its size.

    Raises:
        ExportError: an unknown input, an axis that the example does not have, a wrong name, or
            a name whose axes have different sizes in the example.
    """
    limits: dict[str, range] = {}
    by_input = _by_input(tensors, axes)
    names = {
        name: _names(name, tensor, by_input.get(name), limits) for name, tensor in tensors.items()
    }
    sizes: dict[str, tuple[int, str]] = {}
    for name, tensor in tensors.items():
        for size, axis in zip(tensor.shape, names[name], strict=True):
            if axis:
                first_size, first = sizes.setdefault(axis, (size, name))
                if size != first_size:
                    raise ExportError(
                        f"axis {axis!r} is of size {first_size} in input {first!r} and {size} in "
                        f"{name!r} (expected one size; the first axis of each input is 'batch' "
                        "unless `axes` says otherwise)"
                    )
                if size < 1:
                    raise ExportError(
                        f"axis {axis!r} of input {name!r} is empty (expected 1 or more)"
                    )
    return names, limits


def choose_traced_sizes(sizes: Mapping[str, int], limits: Mapping[str, range]) -> dict[str, int]:
    """Returns the sizes of the free axes with which a module is traced.

    Args:
        sizes: the example's.
        limits: what an axis may have.

    Returns:
        Different ones of at least 2, where the limits allow it: torch takes equal sizes for the
        same axis.
    """
    traced: dict[str, int] = {}
    for axis in sorted(sizes, key=lambda name: name == BATCH):  # the batch last
        size = max(sizes[axis], 2)
        candidates = [*_TRACED_SIZES] if axis == BATCH else [size, size + 1, size + 2, 2 * size]
        allowed = [
            one
            for one in candidates
            if one not in traced.values() and (axis not in limits or one in limits[axis])
        ]
        traced[axis] = allowed[0] if allowed else size
    return traced


def dynamic_shapes(
    axes: Mapping[str, Sequence[str]], limits: Mapping[str, range]
) -> tuple[dict[int, Any], ...]:
    """Returns torch.export's description of the free axes.

    An axis with limits is a Dim; the others are left to torch, which then says by a fixed size
    that the module has one, and finds by itself from which size on an axis may be.
    """
    dims = {
        name: Dim(name, min=limit.start, max=None if limit.stop > _LARGEST else limit.stop - 1)
        for name, limit in limits.items()
    }
    return tuple(
        {at: dims.get(name, Dim.AUTO) for at, name in enumerate(names) if name}
        for names in axes.values()
    )


def _by_input(
    tensors: Mapping[str, Tensor], axes: AxisNames | Mapping[str, AxisNames] | None
) -> Mapping[str, AxisNames]:
    if axes is None:
        return {}
    if isinstance(axes, Mapping) and (not axes or all(isinstance(key, str) for key in axes)):
        unknown = [name for name in axes if name not in tensors]
        if unknown:
            raise ExportError(f"axes of unknown input {unknown[0]!r} (available: {list(tensors)})")
        return axes  # type: ignore[return-value]
    if len(tensors) > 1:
        raise ExportError(
            f"axes without an input (expected a mapping by input, of {list(tensors)})"
        )
    return dict.fromkeys(tensors, axes)  # type: ignore[arg-type]


def _names(
    name: str, tensor: Tensor, wanted: AxisNames | None, limits: dict[str, range]
) -> tuple[str, ...]:
    if wanted is None:
        if not tensor.dim():
            return ()
        return (BATCH, *[""] * (tensor.dim() - 1))
    if isinstance(wanted, str):
        raise ExportError(f"axes of input {name!r} are a text (expected a sequence: ('batch',))")
    if not isinstance(wanted, Mapping | Sequence):
        raise ExportError(
            f"axes of input {name!r} are {wanted!r} (expected a sequence: ('batch',), or names by "
            "index: {0: 'batch'})"
        )
    entries = dict(wanted if isinstance(wanted, Mapping) else enumerate(wanted))
    names = [""] * tensor.dim()
    for at, axis in entries.items():
        if not isinstance(at, int) or not 0 <= at < tensor.dim():
            raise ExportError(
                f"axis {at!r} of input {name!r} does not exist: the example has shape "
                f"{list(tensor.shape)}"
            )
        if axis is None or axis == "":
            continue
        label = axis if isinstance(axis, str) else getattr(axis, "__name__", None)
        if not isinstance(label, str) or not label.isidentifier():
            raise ExportError(
                f"axis {at} of input {name!r} is called {axis!r} (expected a name of letters, "
                "digits and '_', or a torch.export.Dim)"
            )
        if label in names:
            raise ExportError(f"axis name {label!r} repeated in input {name!r} (expected one each)")
        if not isinstance(axis, str):
            most = getattr(axis, "max", None)
            limits[label] = range(
                int(getattr(axis, "min", 0) or 1), int(_LARGEST if most is None else most) + 1
            )
        names[at] = label
    return tuple(names)


def frozen_axis(
    program: torch.export.ExportedProgram, axes: Mapping[str, Sequence[str]]
) -> tuple[str, int, str, int] | None:
    """Finds a free axis that the traced module has in one size.

    Returns:
        Input, index, name and size of the first one; None if there is none.
    """
    traced = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for (name, names), traced_name in zip(
        axes.items(), program.graph_signature.user_inputs, strict=True
    ):
        shape = traced[str(traced_name)].meta["val"].shape
        for at, (axis, size) in enumerate(zip(names, shape, strict=True)):
            # A size that became fixed on the way is still a SymInt, which is written as a number.
            if axis and str(size).isdecimal():
                return name, at, axis, int(str(size))
    return None
