"""The task of a model: whether an output is a classification, a regression, or just a tensor.

It comes from the model's settings, else from the metadata in its file, else from an output that is
a map by class (ZipMap).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from neurona_protos import metadata as model_metadata
from neurona_protos.prediction_pb2 import (
    DataType,
    InputDescription,
    ModelMetadata,
    Task,
    ValueDescription,
)
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.errors import LoadError, close_match
from neurona_server.models.encoded_images import describe_image
from neurona_server.models.input_bounds import set_input_settings
from neurona_server.models.repository.settings import ModelSettings
from neurona_server.models.signature import TensorSpec

log = logging.getLogger(__name__)

DEFAULT_ANSWERS = {Task.TASK_CLASSIFICATION: "probabilities", Task.TASK_REGRESSION: "value"}
"""Conventional name of the output that answers a task."""

_RANKS = {Task.TASK_CLASSIFICATION: (2,), Task.TASK_REGRESSION: (1, 2)}
_NUMPY_KINDS = {Task.TASK_CLASSIFICATION: "f", Task.TASK_REGRESSION: "fiu"}


@dataclass(frozen=True)
class TaskOutput:
    """The output that answers a model's task."""

    metadata: ModelMetadata
    index: int
    """Index of the output, -1 for a model without a task."""

    softmax: bool = False
    """Whether the output holds logits."""

    finite: bool = False
    """Whether the file says, before settings, that an input takes finite numbers only."""


def find_task(
    properties: Mapping[str, str],
    class_labels: Mapping[str, Sequence[str]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    settings: ModelSettings,
) -> TaskOutput:
    """Return the task of a model, the output that answers it and their description.

    Args:
        properties: Metadata of the file.
        class_labels: Labels of the outputs that are maps by class, as far as they are known.
        inputs: All inputs, including optional ones.
        outputs: All outputs.
        settings: Settings of the model, which take precedence over the metadata.

    Raises:
        LoadError: No output can answer the task, or the output contradicts its description.
    """
    settings = _use_output_labels(settings, outputs)
    metadata = _read_metadata(properties, class_labels)
    finite = any(described.finite for described in metadata.inputs)
    if settings.task is not None and settings.task != metadata.task:
        # The file describes another task.
        metadata.task = settings.task
        for name in ("answer", "labels", "values"):
            metadata.ClearField(name)
    if metadata.task not in Task.values():
        raise LoadError(f"its metadata have an unknown task {metadata.task}")
    _set_descriptions(metadata, inputs, settings)
    _check_settings(metadata.task, settings)
    if metadata.task == Task.TASK_TENSORS:
        return TaskOutput(metadata, -1, finite=finite)
    metadata.answer = settings.answer or metadata.answer
    if not metadata.answer:
        required = settings.task is not None
        metadata.answer = _find_answer(metadata.task, outputs, required=required)
    index = _answer_index(metadata, outputs)
    if metadata.task == Task.TASK_CLASSIFICATION:
        _set_labels(metadata, class_labels.get(metadata.answer, ()), settings)
    elif settings.values:
        del metadata.values[:]
        metadata.values.extend(
            ValueDescription(name=value.name or metadata.answer, unit=value.unit)
            for value in settings.values
        )
    _check_columns(metadata, outputs[index])
    return TaskOutput(metadata, index, settings.softmax, finite)


def states_task(properties: Mapping[str, str], settings: ModelSettings) -> bool:
    """Return whether the file or its settings say what the model is for."""
    return model_metadata.KEY in properties or settings.task is not None or settings.softmax


def is_answer(task: Task, spec: TensorSpec) -> bool:
    """Return whether an output has the rank and the dtype to answer a task."""
    return (spec.any_shape or len(spec.shape) in _RANKS[task]) and _has_numbers(task, spec)


def _read_metadata(
    properties: Mapping[str, str], class_labels: Mapping[str, Sequence[str]]
) -> ModelMetadata:
    text = properties.get(model_metadata.KEY)
    if text is None:
        # Without metadata, a map by class is a classification.
        for name, labels in class_labels.items():
            return ModelMetadata(task=Task.TASK_CLASSIFICATION, answer=name, labels=labels)
        return ModelMetadata()
    try:
        return model_metadata.from_json(text)
    except ValueError as error:
        raise LoadError(str(error)) from error


def _use_output_labels(settings: ModelSettings, outputs: Sequence[TensorSpec]) -> ModelSettings:
    """Make the only output with labels in config.pbtxt the answer of a classification."""
    labelled = [
        (spec, labels)
        for spec in outputs
        if (labels := settings.output_labels.get(spec.name))
        and all(labels)
        and is_answer(Task.TASK_CLASSIFICATION, spec)
    ]
    if settings.task is not None or len(labelled) != 1:
        return settings
    spec, labels = labelled[0]
    width = None if spec.any_shape else spec.shape[1]
    if isinstance(width, int) and width != len(labels):
        # In the Open Inference Protocol they are given by their indices, as in Triton.
        log.warning(
            "%d labels for output %r, which is %s: it is no classification",
            *(len(labels), spec.name, spec),
        )
        return settings
    return replace(settings, task=Task.TASK_CLASSIFICATION, answer=spec.name, labels=labels)


def _set_descriptions(
    metadata: ModelMetadata, inputs: Sequence[TensorSpec], settings: ModelSettings
) -> None:
    metadata.description = settings.description or metadata.description
    descriptions = {description.name: description for description in metadata.inputs}
    for spec in inputs:
        tensor = settings.inputs.get(spec.name)
        if tensor is None:
            continue
        words = InputDescription(description=tensor.description, unit=tensor.unit)
        limits = (tensor.allow_nan, tensor.allow_unknown)
        if not words.ByteSize() and limits == (None, None) and tensor.image is None:
            continue
        description = descriptions.get(spec.name) or metadata.inputs.add(name=spec.name)
        description.MergeFrom(words)
        if tensor.image is not None:
            description.image.CopyFrom(describe_image(tensor.image, spec))
        set_input_settings(description, spec, tensor)


def _check_settings(task: Task, settings: ModelSettings) -> None:
    """Raise LoadError for settings of an answer that this task does not have."""
    name = _task_name(task)
    for key, value, tasks in (
        ("labels", settings.labels, [Task.TASK_CLASSIFICATION]),
        ("softmax", settings.softmax, [Task.TASK_CLASSIFICATION]),
        ("values", settings.values, [Task.TASK_REGRESSION]),
        ("answer", settings.answer, [Task.TASK_CLASSIFICATION, Task.TASK_REGRESSION]),
    ):
        if value and task not in tasks:
            expected = " or ".join(f'task = "{_task_name(one)}"' for one in tasks)
            raise LoadError(
                f"its settings have {key}, but its task is {name} (expected {expected})"
            )


def _find_answer(task: Task, outputs: Sequence[TensorSpec], *, required: bool) -> str:
    """Return the output with the conventional name, else the only one that can answer the task.

    Without `required`, the conventional name is returned even if there is no such output.
    """
    default = DEFAULT_ANSWERS[task]
    if not required or any(spec.name == default for spec in outputs):
        return default
    candidates = [spec.name for spec in outputs if is_answer(task, spec)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise LoadError(
            f"its settings do not name the output that is the answer (expected one of {candidates})"
        )
    described = ", ".join(f"{spec.name!r} ({spec})" for spec in outputs)
    raise LoadError(f"no output can answer a {_task_name(task)}; its outputs are {described}")


def _answer_index(metadata: ModelMetadata, outputs: Sequence[TensorSpec]) -> int:
    answer, task = metadata.answer, metadata.task
    names = [spec.name for spec in outputs]
    if answer not in names:
        raise LoadError(
            f"its metadata name the answer {answer!r}; its outputs are {names}"
            f"{close_match(answer, names)}"
        )
    spec = outputs[names.index(answer)]
    if not spec.any_shape and len(spec.shape) not in _RANKS[task]:
        ranks = " or ".join(f"{rank} axes" if rank > 1 else "1 axis" for rank in _RANKS[task])
        raise LoadError(
            f"its answer {answer!r} is {spec} (expected {ranks} for a {_task_name(task)})"
        )
    if not _has_numbers(task, spec):
        numbers = "floats" if _NUMPY_KINDS[task] == "f" else "numbers"
        raise LoadError(
            f"its answer {answer!r} is {spec} (expected {numbers} for a {_task_name(task)})"
        )
    return names.index(answer)


def _set_labels(metadata: ModelMetadata, classes: Sequence[str], settings: ModelSettings) -> None:
    """Set the labels of a classification; `classes` are the labels of the model itself."""
    if settings.labels:
        if classes and len(settings.labels) != len(classes):
            raise LoadError(
                f"its settings have {len(settings.labels)} labels; {metadata.answer!r} has "
                f"{len(classes)} classes"
            )
        same = sorted(settings.labels) == sorted(classes)
        if same and tuple(settings.labels) != tuple(classes):
            raise LoadError(
                f"its settings have the labels {[*settings.labels]}; {metadata.answer!r} has "
                f"them in the order {[*classes]}"
            )
        del metadata.labels[:]
        metadata.labels.extend(settings.labels)
    elif not metadata.labels:
        metadata.labels.extend(classes)


def _check_columns(metadata: ModelMetadata, spec: TensorSpec) -> None:
    described = metadata.labels or metadata.values
    width = spec.shape[1] if len(spec.shape) == 2 else 1
    if spec.any_shape:
        return
    if described and isinstance(width, int) and width != len(described):
        raise LoadError(
            f"its metadata describe {len(described)} columns of {spec.name!r}, which is {spec}"
        )


def _has_numbers(task: Task, spec: TensorSpec) -> bool:
    # Arrays of BFLOAT16 are uint16, whose values are bits and not numbers.
    bits = spec.dtype == DataType.DATA_TYPE_BFLOAT16
    return not bits and NUMPY_DTYPES[spec.dtype].kind in _NUMPY_KINDS[task]


def _task_name(task: Task) -> str:
    return Task.Name(task).removeprefix("TASK_").lower()
