"""What a model's answer means: a classification, a regression, or just tensors.

The model's settings say it, else the metadata in its file, else a map by class among its outputs.
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
from neurona_server.models.repository.settings import ModelSettings
from neurona_server.models.signature import TensorSpec

log = logging.getLogger(__name__)

DEFAULT_ANSWERS = {Task.TASK_CLASSIFICATION: "probabilities", Task.TASK_REGRESSION: "value"}
_RANKS = {Task.TASK_CLASSIFICATION: (2,), Task.TASK_REGRESSION: (1, 2)}
_KINDS = {Task.TASK_CLASSIFICATION: "f", Task.TASK_REGRESSION: "fiu"}


@dataclass(frozen=True)
class TaskOutput:
    """`index` is that of the output that holds the answer, -1 for a model without a task;
    with `softmax` it holds logits."""

    metadata: ModelMetadata
    index: int
    softmax: bool = False


def find_task(
    properties: Mapping[str, str],
    class_labels: Mapping[str, Sequence[str]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    settings: ModelSettings,
) -> TaskOutput:
    """`properties` are those of the file; `class_labels` the classes of each output that is a
    map by class, as far as they are known.

    Raises LoadError when the task cannot be answered from the outputs, or when what is said of
    the answer contradicts it.
    """
    settings = _with_labelled_output(settings, outputs)
    metadata = _metadata(properties, class_labels)
    if settings.task is not None and settings.task != metadata.task:
        # What the file says of another task is not about this one.
        metadata.task = settings.task
        for name in ("answer", "labels", "values"):
            metadata.ClearField(name)
    if metadata.task not in Task.values():
        raise LoadError(f"its metadata name the task {metadata.task}, which is not known")
    _describe(metadata, inputs, settings)
    _check_keys(metadata.task, settings)
    if metadata.task == Task.TASK_TENSORS:
        return TaskOutput(metadata, -1)
    metadata.answer = settings.answer or metadata.answer
    if not metadata.answer:
        metadata.answer = _find_answer(metadata.task, outputs, asked=settings.task is not None)
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
    return TaskOutput(metadata, index, settings.softmax)


def is_answer(task: Task, spec: TensorSpec) -> bool:
    """Whether an output has the rank and the dtype of a task's answer."""
    return len(spec.shape) in _RANKS[task] and _holds_numbers(task, spec)


def _metadata(
    properties: Mapping[str, str], class_labels: Mapping[str, Sequence[str]]
) -> ModelMetadata:
    text = properties.get(model_metadata.KEY)
    if text is None:
        # Of a model that says nothing, a map by class is a classification.
        for name, labels in class_labels.items():
            return ModelMetadata(task=Task.TASK_CLASSIFICATION, answer=name, labels=labels)
        return ModelMetadata()
    try:
        return model_metadata.from_json(text)
    except ValueError as error:
        raise LoadError(str(error)) from error


def _with_labelled_output(settings: ModelSettings, outputs: Sequence[TensorSpec]) -> ModelSettings:
    """One output with labels, in a config.pbtxt, is the answer of a classification."""
    fitting = [
        (spec, labels)
        for spec in outputs
        if (labels := settings.output_labels.get(spec.name))
        and is_answer(Task.TASK_CLASSIFICATION, spec)
    ]
    if settings.task is not None or len(fitting) != 1:
        return settings
    spec, labels = fitting[0]
    if isinstance(spec.shape[1], int) and spec.shape[1] != len(labels):
        # Triton serves it all the same; to call classes by wrong names would be worse.
        log.warning("%d labels do not fit %r, which is %s", len(labels), spec.name, spec)
        return settings
    return replace(settings, task=Task.TASK_CLASSIFICATION, answer=spec.name, labels=labels)


def _describe(
    metadata: ModelMetadata, inputs: Sequence[TensorSpec], settings: ModelSettings
) -> None:
    metadata.description = settings.description or metadata.description
    known = {one.name: one for one in metadata.inputs}
    for spec in inputs:
        said = settings.inputs.get(spec.name)
        if said is None or not (said.description or said.unit):
            continue
        one = known.get(spec.name) or metadata.inputs.add(name=spec.name)
        one.MergeFrom(InputDescription(description=said.description, unit=said.unit))


def _check_keys(task: Task, settings: ModelSettings) -> None:
    """Raises LoadError for what is said of an answer that this task does not have."""
    name = _name(task)
    for key, said, wanted in (
        ("labels", settings.labels, [Task.TASK_CLASSIFICATION]),
        ("softmax", settings.softmax, [Task.TASK_CLASSIFICATION]),
        ("values", settings.values, [Task.TASK_REGRESSION]),
        ("answer", settings.answer, [Task.TASK_CLASSIFICATION, Task.TASK_REGRESSION]),
    ):
        if said and task not in wanted:
            expected = " or ".join(f'task = "{_name(one)}"' for one in wanted)
            raise LoadError(f"its settings have {key}, but its task is {name}; expected {expected}")


def _find_answer(task: Task, outputs: Sequence[TensorSpec], *, asked: bool) -> str:
    """The output with the conventional name; where the settings ask for the task, else the only
    one that could be it."""
    default = DEFAULT_ANSWERS[task]
    if not asked or any(spec.name == default for spec in outputs):
        return default
    candidates = [spec.name for spec in outputs if is_answer(task, spec)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise LoadError(
            f"its settings do not say which output is the answer; expected one of {candidates}"
        )
    described = ", ".join(f"{spec.name!r} ({spec})" for spec in outputs)
    raise LoadError(f"no output can be the answer of a {_name(task)}; its outputs are {described}")


def _answer_index(metadata: ModelMetadata, outputs: Sequence[TensorSpec]) -> int:
    answer, task = metadata.answer, metadata.task
    names = [spec.name for spec in outputs]
    if answer not in names:
        raise LoadError(
            f"its metadata name the answer {answer!r}; its outputs are {names}"
            f"{close_match(answer, names)}"
        )
    spec = outputs[names.index(answer)]
    if len(spec.shape) not in _RANKS[task]:
        raise LoadError(
            f"its answer {answer!r} is {spec}, which is not a {_name(task)}'s (rows, …)"
        )
    if not _holds_numbers(task, spec):
        raise LoadError(f"its answer {answer!r} is {spec}, which holds no such numbers")
    return names.index(answer)


def _set_labels(metadata: ModelMetadata, classes: Sequence[str], settings: ModelSettings) -> None:
    """`classes` are those by which the model itself knows the columns, if it does."""
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
    if described and isinstance(width, int) and width != len(described):
        raise LoadError(f"its metadata describe {len(described)} columns of {spec.name!r} {spec}")


def _holds_numbers(task: Task, spec: TensorSpec) -> bool:
    # The arrays of BFLOAT16 are uint16, whose numbers mean nothing.
    bits = spec.dtype == DataType.DATA_TYPE_BFLOAT16
    return not bits and NUMPY_DTYPES[spec.dtype].kind in _KINDS[task]


def _name(task: Task) -> str:
    return Task.Name(task).removeprefix("TASK_").lower()
