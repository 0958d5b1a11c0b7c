"""Weights that a training starts from: those of a published network or of an earlier model.

A network that has learned to see one kind of pictures needs few of another kind (J. Yosinski and
others, How Transferable Are Features in Deep Neural Networks?, NeurIPS 2014). All layers but the
last take the weights of the file; the last one too, if what it predicts is the same.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from neurona_training.architectures.forecast import Forecast
from neurona_training.architectures.input_layers import Normalise
from neurona_training.architectures.published_weights import (
    PUBLISHED_SCALES,
    PublishedInput,
    rename_published,
)
from neurona_training.data import Dataset
from neurona_training.errors import WeightsError
from neurona_training.learning.run import InitialWeights

WEIGHTS_FILE = "weights.safetensors"  # in the folder of a model's report

_DESCRIPTION = "neurona"  # key of the recipe and what it predicts, in the file's own metadata
_NESTED = ("state_dict", "model", "model_state_dict")  # where training scripts put the weights
_WHITE_LEVELS = (1.0, 16.0, 255.0, 65535.0)  # of the images that there are
# What belongs to the classes or values that are predicted, by the end of a layer's path.
_LAST_LAYERS = ("output", "classifier.6", "denormalise")
_NAMED = 3  # differing tensors that an error names
_OPTIONAL = ("auxiliary.", "num_batches_tracked")  # published files may lack them


def start_from(
    weights: InitialWeights, network: nn.Module, recipe: str, data: Dataset
) -> tuple[str, ...]:
    """Gives a network the weights of a file, and freezes what is to be kept.

    Args:
        weights: the file.
        network: with fresh weights, on the CPU; changed in place.
        recipe: name of the network's recipe.
        data: what it will be trained on.

    Returns:
        The layers that keep their fresh weights.

    Raises:
        WeightsError: the file cannot be read, or is not of this network: a tensor is absent,
            unknown or of another shape, or its inputs are other columns.
    """
    path = _file_of(weights)
    if not path.exists():
        raise _not_found(path)
    if weights.path.is_dir():
        state, answers = _read_model(path, recipe, data)
        if "colours.mean" in state and recipe in PUBLISHED_SCALES:  # begun from a published file
            network.colours = PublishedInput(_white_level(data), PUBLISHED_SCALES[recipe])
        same_answers = answers == answer_names(data)
    else:
        state, same_answers = _read_published(path, recipe, network, data), False
    own = network.state_dict()
    fitted = _linear_part(network) | (_image_scales(network) if data.kind == "images" else set())
    fresh = _fresh_names(own, state, same_answers=same_answers) | fitted
    _check_tensors(path, own, state, fresh)
    network.load_state_dict({**state, **{name: own[name] for name in fresh}}, strict=False)
    if weights.freeze:
        for name, weight in network.named_parameters():
            # A layer that the file does not have must learn too.
            weight.requires_grad_(_is_last(name) or name in fresh)
    named = sorted(name for name in fresh - fitted if "num_batches" not in name)
    layers = (name.rpartition(".")[0] for name in named)
    return tuple(dict.fromkeys(layers))


def describe_weights(weights: InitialWeights) -> str:
    """Returns the file with its SHA-256, and what is frozen, for a model's provenance.

    Raises:
        WeightsError: the file cannot be read.
    """
    path = _file_of(weights)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise _not_found(path) from error
    except OSError as error:
        raise WeightsError(f"weights unreadable: {path}: {error.strerror}") from error
    frozen = "; all layers but the last kept them" if weights.freeze else ""
    return f"{path.name}, sha256 {digest}{frozen}"


def answer_names(data: Dataset) -> tuple[str, ...]:
    """What a network predicts: the names of classes, or of values with their units."""
    return data.labels or tuple(f"{value.name} ({value.unit})" for value in data.values)


def input_names(data: Dataset) -> tuple[str, ...]:
    """What a network reads, in its order: the names of columns, or the known characters."""
    return data.input.categories or data.input.columns


def weights_file(network: nn.Module, recipe: str, data: Dataset) -> bytes:
    """Makes the file from which another training can start.

    Args:
        network: as its learner returned it.
        recipe: its name.
        data: what it was trained on.

    Returns:
        The content of a safetensors file, the same for the same weights.
    """
    # Tensors that share memory, or are not contiguous, are refused by the format.
    state = {name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}
    # One entry: the library writes several in any order.
    described = json.dumps(
        {"recipe": recipe, "answers": answer_names(data), "inputs": input_names(data)}
    )
    return safetensors.torch.save(state, {_DESCRIPTION: described})


def _file_of(weights: InitialWeights) -> Path:
    if not weights.path.is_dir():
        return weights.path
    folder = weights.path.parent if weights.path.name.isdecimal() else weights.path
    return folder / "report" / WEIGHTS_FILE


def _not_found(path: Path) -> WeightsError:
    hint = " (expected the folder of a model that neurona-train has written)"
    return WeightsError(f"weights not found: {path}{hint if path.name == WEIGHTS_FILE else ''}")


def _read_model(
    path: Path, recipe: str, data: Dataset
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Returns the tensors of a model, and the names of its classes or values.

    Raises:
        WeightsError: the file cannot be read, or is of another recipe or of other columns.
    """
    if not path.is_file():
        raise _not_found(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            described = json.loads((file.metadata() or {})[_DESCRIPTION])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            other, answers = str(described["recipe"]), tuple(map(str, described["answers"]))
            names = tuple(map(str, described.get("inputs", ())))
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(f"weights unreadable: {path}: {error}") from error
    if other != recipe:
        raise WeightsError(
            f"weights of another network: {path} is of recipe {other!r} (expected {recipe!r})"
        )
    own_names = input_names(data)
    if len(names) > 1 and own_names and names != own_names:  # one series may follow another
        index = next(
            (
                place
                for place, pair in enumerate(zip(names, own_names, strict=False))
                if pair[0] != pair[1]
            ),
            min(len(names), len(own_names)),
        )
        theirs, ours = ((*some, "nothing")[min(index, len(some))] for some in (names, own_names))
        raise WeightsError(
            f"weights of other inputs: {path} has {len(names)}, number {index + 1} is {theirs!r} "
            f"(expected {len(own_names)}, and there {ours!r}: the same in the same order)"
        )
    return state, answers


def _read_published(
    path: Path, recipe: str, network: nn.Module, data: Dataset
) -> dict[str, Tensor]:
    """Returns the tensors of a published file; the network gets the scale that belongs to them."""
    if recipe not in PUBLISHED_SCALES:
        raise WeightsError(
            f"published weights not possible for recipe {recipe!r} (expected "
            f"{', '.join(PUBLISHED_SCALES)})"
        )
    state = rename_published(recipe, _read_state(path), network)
    network.colours = PublishedInput(_white_level(data), PUBLISHED_SCALES[recipe])
    own = network.state_dict()
    first = "classifier.0.weight"  # as wide as the maps that images of this size leave
    if recipe == "vgg16" and first in state and state[first].shape != own[first].shape:
        state = {name: one for name, one in state.items() if not name.startswith("classifier.")}
    scale = {name: one for name, one in own.items() if name.startswith("colours.")}
    return {**state, **scale}


def _white_level(data: Dataset) -> float:
    """The level of a white pixel in these images."""
    highest = float(data.train.inputs.max())
    return next((level for level in _WHITE_LEVELS if highest <= level), highest)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        # weights_only: tensors and plain values, and no code from the file
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise _not_found(path) from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        KeyError,
        ValueError,
        pickle.PickleError,
        SafetensorError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"weights unreadable: {path}: {reason} (expected a state dictionary of torch.save, or "
            "a .safetensors file)"
        ) from error
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not all(
        isinstance(one, Tensor) for one in content.values()
    ):
        raise WeightsError(
            f"weights unreadable: {path}: {type(content).__name__} (expected tensors by name, as "
            "network.state_dict() gives them)"
        )
    # Data-parallel training puts a prefix before all names.
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _is_last(name: str) -> bool:
    layer = name.rpartition(".")[0]
    return any(layer == last or layer.endswith(f".{last}") for last in _LAST_LAYERS)


def _image_scales(network: nn.Module) -> set[str]:
    """Names of the tensors that scale pixels.

    White may be 1, 16 or 255; a network has learned to see on images of mean 0 and variance 1.
    """
    return {
        f"{path}.{name}".lstrip(".")
        for path, module in network.named_modules()
        if isinstance(module, Normalise | PublishedInput)
        for name, _ in module.named_buffers(recurse=False)
    }


def _linear_part(network: nn.Module) -> set[str]:
    """Names of the tensors of a forecast's linear function.

    It is fitted to the series as a whole, and cannot be learned on from another one's.
    """
    return {
        f"{path}.{name}".lstrip(".")
        for path, module in network.named_modules()
        if isinstance(module, Forecast)
        for name, _ in module.named_buffers(recurse=False)
    }


def _fresh_names(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, same_answers: bool
) -> set[str]:
    """Names of the network's tensors that keep their fresh weights."""
    fresh = set()
    for name, tensor in own.items():
        is_last = _is_last(name)
        fits = name in state and state[name].shape == tensor.shape
        if (is_last and not (same_answers and fits)) or (
            name not in state
            and (name.startswith(("auxiliary.", "classifier.")) or name.endswith(_OPTIONAL))
        ):
            fresh.add(name)
    return fresh


def _check_tensors(
    path: Path, own: Mapping[str, Tensor], state: Mapping[str, Tensor], fresh: set[str]
) -> None:
    """Compares names and shapes of what the network takes with the file's."""
    faults = [
        f"{name} is {list(state[name].shape)}, expected {list(tensor.shape)}"
        if name in state
        else f"no {name}"
        for name, tensor in own.items()
        if name not in fresh and (name not in state or state[name].shape != tensor.shape)
    ]
    faults += [
        f"unknown {name}"
        for name in state
        if not (name in own or _is_last(name) or name.startswith("auxiliary."))
    ]
    if faults:
        more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise WeightsError(
            f"weights of another network: {path}: {'; '.join(faults[:_NAMED])}{more}"
        )
