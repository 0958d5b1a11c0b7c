"""The inputs and outputs that config.pbtxt declares, held against those of the graph."""

from collections.abc import Sequence
from dataclasses import replace

from neurona_server.errors import LoadError
from neurona_server.models.settings import DeclaredTensor
from neurona_server.models.signature import Size, TensorSpec
from neurona_server.models.toml_values import close_match


def hold_to(
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
