"""What the axes of a model's tensors are, where its settings say so; and whether axis 0 is the
batch axis."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from neurona_server.errors import LoadError
from neurona_server.models.batch_proof import Run, can_batch
from neurona_server.models.samples import has_free_rows
from neurona_server.models.settings import ModelSettings, TensorSettings
from neurona_server.models.signature import TensorSpec
from neurona_server.models.toml_values import close_match

log = logging.getLogger(__name__)

BATCH = "batch"
"""What axis 0 is called if requests may be joined along it."""


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


def decide_batching(
    model: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    settings: ModelSettings,
    run: Run,
) -> bool:
    """Whether requests to it share runs: as its settings say, else found out by running it.

    Raises LoadError when they say what its shapes do not allow.
    """
    specs = [*inputs, *outputs]
    said = _said(specs, settings)
    if said is False:
        return False
    if said:
        for spec in specs:
            if not has_free_rows(spec):
                raise LoadError(
                    f"its settings say that it is batched, but {spec.name!r} is {spec}; "
                    "expected an axis 0 of free size"
                )
    proved = can_batch(inputs, outputs, run)
    if said and not proved:
        log.warning(
            "%s: its settings say that it is batched, which is believed; made-up rows that were "
            "run together did not give what they gave apart",
            model,
        )
    elif not proved and all(map(has_free_rows, specs)):
        log.info("%s: its rows change each other, so requests run one by one", model)
    return proved or bool(said)


def _said(specs: Sequence[TensorSpec], settings: ModelSettings) -> bool | None:
    """By the key itself, else by the names of the first axes; None where neither tells."""
    first = [spec.axes[0] for spec in specs if spec.axes]
    others = [name for name in first if name not in ("", BATCH)]
    if settings.batched is not None:
        if settings.batched and others:
            raise LoadError(
                f"its settings say that it is batched, and call an axis 0 {others[0]!r}; "
                f"expected {BATCH!r}"
            )
        return settings.batched
    if others:
        return False
    return True if specs and first == [BATCH] * len(specs) else None
