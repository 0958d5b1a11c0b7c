"""Any torch module as one ONNX file, with metadata, verified as a recipe's network is.

The module is copied, to the CPU and into evaluation mode, and never changed. Its recurrent
layers become ONNX operators, so that no length is frozen. ONNX Runtime then gives its outputs at
several sizes of each free axis and for random and extreme values; they have to be the module's.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from neurona_protos.prediction_pb2 import (
    TASK_CLASSIFICATION,
    TASK_REGRESSION,
    TASK_TENSORS,
    ImageDescription,
    InputDescription,
    ModelMetadata,
    ValueDescription,
)
from neurona_training.errors import ExportError
from neurona_training.export.check_inputs import (
    CheckedInput,
)
from neurona_training.export.files import check_writable, write_file
from neurona_training.export.free_axes import (
    AxisNames,
    read_axes,
)
from neurona_training.export.graph_check import one_line
from neurona_training.export.metadata import PROBABILITIES, VALUE, tool_versions
from neurona_training.export.module_call import (
    Example,
    FlatCall,
    NamedExample,
    check_names,
    flatten,
    read_example,
)
from neurona_training.export.module_proof import ModuleProof
from neurona_training.export.onnx_export import OPSET
from neurona_training.export.tensor_comparison import Array, Tolerance

MODEL_FILE = "model.onnx"
_OPSETS = range(18, 22)  # from the exporter's first to the last before RNN, GRU and LSTM change

_PROBABILITY_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it was verified.

    Args:
        path: the file.
        inputs: by input, its axes: a name for those of any size, a number for the others.
        outputs: by output, the same.
        differences: by case (sizes and values), the largest difference from torch.
        skipped: by case, why torch itself gives no output there.
        undecided: numbers that differ where rounding decides, as the larger of two equal scores.
        seconds: that all took.
    """

    path: Path
    inputs: Mapping[str, tuple[str | int, ...]]
    outputs: Mapping[str, tuple[str | int, ...]]
    differences: Mapping[str, float]
    skipped: Mapping[str, str]
    undecided: int
    seconds: float

    @property
    def free_axes(self) -> tuple[str, ...]:
        """The names of the inputs' axes of any size."""
        axes = (axis for shape in self.inputs.values() for axis in shape if isinstance(axis, str))
        return tuple(dict.fromkeys(axes))

    @property
    def largest_difference(self) -> float:
        """Of all cases."""
        return max(self.differences.values())

    def __str__(self) -> str:
        """A few lines of text."""
        lines = [f"{self.path}: {self.seconds:.1f} s"]
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            for name, axes in tensors.items():
                lines.append(f"{kind} {name}: {' x '.join(map(str, axes)) or 'a number'}")
        lines.append(
            f"equal to torch in {len(self.differences)} cases, largest difference "
            f"{self.largest_difference:.2g}"
        )
        if self.undecided:
            lines.append(f"{self.undecided} numbers differ where rounding decides, as among equals")
        if self.skipped:
            case, reason = next(iter(self.skipped.items()))
            lines.append(f"torch itself refuses {len(self.skipped)} cases: {case}: {reason[:150]}")
        return "\n".join(lines)


def export(
    module: nn.Module,
    example: Example,
    path: str | Path,
    *,
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
    axes: AxisNames | Mapping[str, AxisNames] | None = None,
    labels: Sequence[str] = (),
    values: Sequence[str] | Mapping[str, str] = (),
    answer: str | None = None,
    logits: bool = False,
    description: str = "",
    descriptions: Mapping[str, InputDescription] | None = None,
    image: ImageDescription | Mapping[str, ImageDescription] | None = None,
    figures: Mapping[str, float] | None = None,
    provenance: Mapping[str, object] | None = None,
    opset: int = OPSET,
    version: int = 1,
    tolerance: Tolerance | None = None,
) -> ExportReport:
    """Exports any torch module to ONNX, and verifies the file on ONNX Runtime.

    Args:
        module: on any device, in either mode; it is not changed.
        example: a tensor, a tuple of arguments, or a dict by parameter, with the batch axis
            first; one row is enough. Its numbers give the range of those that verify the file.
        path: a file ending in .onnx, or the folder of a model in a repository, which gets
            VERSION/model.onnx. It is replaced in one step, and not touched if anything fails.
        inputs: a name for each tensor of the example; by default the parameters' names.
        outputs: a name for each output; by default the keys of a mapping, `probabilities` or
            `value` for the answer, or `output`.
        axes: which axes are of any size: by input (or of the only one) a name for each axis in
            order with None for one size, as ("batch", "time", None), or names by index,
            {0: "batch", 1: "time"}. A torch.export.Dim instead of a name sets limits. By default
            the first axis of each input, as "batch".
        labels: of a classification, the name of each class.
        values: of a regression, the name of each value, or its unit by name.
        answer: the output that labels or values describe; by default the first one.
        logits: whether the answer's outputs are logits: the file then has their softmax.
        description: one line for readers.
        descriptions: by input, what callers send (units, columns, categories, ranges).
        image: how encoded images become the only input, or by name one of several.
        figures: metrics by name, such as test_accuracy.
        provenance: how the module was trained.
        opset: of ONNX's operators, 18 to 21.
        version: of the model in a repository.
        tolerance: of the verification; by default 1e-4 of each output, and 1e-5 of the largest.

    Returns:
        What was verified.

    Raises:
        ExportError: the example, an option or an output is not as expected, torch cannot export
            the module, an axis cannot be of any size, or the graph's outputs differ from the
            module's.
        OutputError: the file cannot be written.
    """
    started = time.perf_counter()
    if not isinstance(module, nn.Module):
        raise ExportError(f"module is a {type(module).__name__} (expected a torch.nn.Module)")
    if opset not in _OPSETS:
        raise ExportError(f"opset {opset!r} (expected {_OPSETS[0]} to {_OPSETS[-1]})")
    if not isinstance(version, int) or version < 1:
        raise ExportError(f"version {version!r} (expected an integer from 1)")
    _check_arguments(inputs, outputs, labels, values, description, figures, tolerance)
    if not isinstance(path, str | Path):
        raise ExportError(f"path {path!r} (expected a file ending in .onnx, or a folder)")
    file = Path(path)
    if file.suffix != ".onnx":
        file = file / str(version) / MODEL_FILE
    check_writable(file)
    read = read_example(module, example, inputs)
    axis_names, limits = read_axes(read.tensors, axes)
    reference = _copy_for_cpu(module)
    with torch.random.fork_rng(devices=[]):  # what the module draws is not taken from its caller
        named = _name_outputs(reference, read, outputs, labels, values, answer)
    network = FlatCall(reference, read.form, named.position if logits else None).eval()
    described = _describe(
        named, read, axis_names, labels, values, logits, description, descriptions or {}, image
    )
    described.figures.update(figures or {})
    described.provenance.update(
        {name: str(value) for name, value in {**(provenance or {}), **tool_versions()}.items()}
    )
    checked = _checked_inputs(read, axis_names, descriptions or {})
    proof = ModuleProof(network, checked, named.names, tolerance or Tolerance(), limits)
    with torch.random.fork_rng(devices=[]):
        output_axes = proof.check_module()
        _check_answer(named, proof.example_outputs(), labels, values, logits)
        content = proof.export(axis_names, output_axes, described, opset)
    write_file(content, file)
    shapes = {
        one.name: tuple(
            axis or size for axis, size in zip(one.axes, one.example.shape, strict=True)
        )
        for one in checked
    }
    return ExportReport(
        path=file,
        inputs=shapes,
        outputs=output_axes,
        differences=proof.differences,
        skipped=proof.skipped,
        undecided=proof.undecided,
        seconds=time.perf_counter() - started,
    )


def _check_arguments(
    inputs: Sequence[str],
    outputs: Sequence[str],
    labels: Sequence[str],
    values: Sequence[str] | Mapping[str, str],
    description: str,
    figures: Mapping[str, float] | None,
    tolerance: Tolerance | None,
) -> None:
    """Checks the types of what a caller gives by name, and that labels and values differ."""
    for name, names in {
        "inputs": inputs,
        "outputs": outputs,
        "labels": labels,
        "values": values,
    }.items():
        if isinstance(names, str):  # a text is a sequence of its letters
            raise ExportError(f"{name} are a text, {names!r} (expected a sequence: [{names!r}])")
        units = names.values() if isinstance(names, Mapping) else ()
        for one in (*names, *units):
            if not isinstance(one, str):
                raise ExportError(
                    f"{name} with {one!r}, a {type(one).__name__} (expected texts: [str(one) for "
                    f"one in {name}])"
                )
    for kind, names in (("label", labels), ("value", values)):
        repeated = [one for one in names if list(names).count(one) > 1][:1]
        if repeated:
            raise ExportError(f"{kind} {repeated[0]!r} repeated (expected different names)")
    if not isinstance(description, str):
        raise ExportError(f"description is a {type(description).__name__} (expected a text)")
    for name, figure in (figures or {}).items():
        try:
            float(figure)
        except (TypeError, ValueError) as error:
            raise ExportError(f"figure {name!r} is {figure!r} (expected a number)") from error
    if tolerance is not None and not isinstance(tolerance, Tolerance):
        raise ExportError(
            f"tolerance is a {type(tolerance).__name__} (expected a Tolerance, of "
            "neurona_training.export.tensor_comparison)"
        )


@dataclass(frozen=True)
class _Outputs:
    """The names of all outputs, and which one is the answer ("" for none)."""

    names: tuple[str, ...]
    answer: str

    @property
    def position(self) -> int:
        return self.names.index(self.answer) if self.answer else 0


def _copy_for_cpu(module: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(module).cpu().eval()
    except Exception as error:  # whatever a part of the module raises that cannot be copied
        raise ExportError(
            f"module cannot be copied: {one_line(error)} (expected no tensors with a history, "
            "locks or open files among its attributes)"
        ) from error


def _name_outputs(
    reference: nn.Module,
    read: NamedExample,
    names: Sequence[str],
    labels: Sequence[str],
    values: Sequence[str] | Mapping[str, str],
    answer: str | None,
) -> _Outputs:
    """Runs the module once and names its outputs."""
    if labels and values:
        raise ExportError("labels and values together (expected a classification or a regression)")
    tensors = [tensor.clone() for tensor in read.tensors.values()]
    try:
        with torch.inference_mode():
            own = [name for name, _ in flatten(read.form.call(reference, tensors))]
    except ExportError:
        raise
    except Exception as error:  # whatever the module raises
        shapes = {name: list(tensor.shape) for name, tensor in read.tensors.items()}
        raise ExportError(
            f"module does not take the example, of shapes {shapes}: {one_line(error)}"
        ) from error
    if not own:
        raise ExportError("module without an output (expected at least 1 tensor)")
    has_answer = bool(labels or values or answer)
    if names:
        if len(names) != len(own):
            raise ExportError(f"{len(names)} output names (expected {len(own)}: {own})")
        own = list(names)
    elif len(own) == 1 and own[0] in ("", "output"):
        own = [PROBABILITIES if labels else VALUE if values else "output"]
    check_names("output", own)
    for name in own:
        if name in read.tensors:
            raise ExportError(f"name {name!r} of an input and an output (expected different names)")
    if answer is not None and answer not in own:
        raise ExportError(f"unknown answer {answer!r} (available: {', '.join(own)})")
    return _Outputs(tuple(own), (answer or own[0]) if has_answer else "")


def _describe(
    named: _Outputs,
    read: NamedExample,
    axes: Mapping[str, Sequence[str]],
    labels: Sequence[str],
    values: Sequence[str] | Mapping[str, str],
    logits: bool,
    description: str,
    descriptions: Mapping[str, InputDescription],
    image: ImageDescription | Mapping[str, ImageDescription] | None,
) -> ModelMetadata:
    """The metadata, without figures and provenance."""
    if logits and not labels:
        raise ExportError("logits without labels (expected labels, a name for each class)")
    if isinstance(image, ImageDescription):
        if len(read.tensors) > 1:
            raise ExportError(
                f"image without an input (expected a mapping by input, of {list(read.tensors)})"
            )
        image = dict.fromkeys(read.tensors, image)
    images = image or {}
    for name, one in (*descriptions.items(), *images.items()):
        if not isinstance(one, InputDescription | ImageDescription):
            raise ExportError(
                f"description of input {name!r} is a {type(one).__name__} (expected an "
                "InputDescription, or an ImageDescription of an image)"
            )
        if name not in read.tensors:
            raise ExportError(
                f"description of unknown input {name!r} (available: {list(read.tensors)})"
            )
    inputs = []
    for name in dict.fromkeys((*descriptions, *images)):
        one = InputDescription()
        one.CopyFrom(descriptions.get(name, one))
        one.name = name
        shape = read.tensors[name].shape
        if one.columns and (not len(shape) or len(one.columns) != shape[-1]):
            raise ExportError(
                f"{len(one.columns)} columns of input {name!r} (expected {shape[-1]}, the size of "
                "its last axis)"
            )
        if name in images:
            _check_image(name, shape, axes[name], images[name])
            one.image.CopyFrom(images[name])
        inputs.append(one)
    units = values if isinstance(values, Mapping) else dict.fromkeys(values, "")
    task = TASK_CLASSIFICATION if labels else TASK_REGRESSION if values else TASK_TENSORS
    return ModelMetadata(
        task=task,
        description=description,
        inputs=inputs,
        answer=named.answer,
        labels=labels,
        values=[ValueDescription(name=name, unit=unit) for name, unit in units.items()],
    )


def _check_image(
    name: str, shape: Sequence[int], axes: Sequence[str], image: ImageDescription
) -> None:
    """Checks that the sizes of an image are on two axes of its input."""
    for side, pixels in (("height", image.height), ("width", image.width)):
        fixed = [size for size, axis in zip(shape, axes, strict=True) if not axis]
        if pixels and pixels not in fixed:
            raise ExportError(
                f"image of {side} {pixels} for input {name!r} of shape {list(shape)} (expected an "
                "axis of that size, or 0 for an axis of any size)"
            )


def _checked_inputs(
    read: NamedExample,
    axes: Mapping[str, Sequence[str]],
    descriptions: Mapping[str, InputDescription],
) -> list[CheckedInput]:
    """The inputs as the verification varies them."""
    checked = []
    for name, tensor in read.tensors.items():
        described = descriptions.get(name)
        counted = ""
        if described is not None and described.lengths_of:
            if described.lengths_of not in axes:
                raise ExportError(f"lengths of unknown input {described.lengths_of!r}")
            counted = axes[described.lengths_of][described.lengths_axis]
        checked.append(CheckedInput(name, tensor.numpy().copy(), tuple(axes[name]), counted))
    return checked


def _check_answer(
    named: _Outputs,
    outputs: Sequence[Array],
    labels: Sequence[str],
    values: Sequence[str] | Mapping[str, str],
    logits: bool,
) -> None:
    """Checks that the answer is what labels or values say.

    Raises:
        ExportError: another number of classes or values, or no probabilities.
    """
    if not (labels or values):
        return
    output = outputs[named.position]
    wanted = len(labels or values)
    subject = f"answer {named.answer!r} of shape {list(output.shape)}"
    if output.dtype.kind != "f":
        raise ExportError(f"{subject} is {output.dtype} (expected floating-point numbers)")
    is_vector = output.ndim == 1 and wanted == 1 and not labels
    if not is_vector and (output.ndim != 2 or output.shape[1] != wanted):
        kind = "labels" if labels else "values"
        raise ExportError(f"{subject} for {wanted} {kind} (expected (batch, {wanted}))")
    if labels and not logits:
        sums = output.sum(axis=1)
        if output.min() < -_PROBABILITY_TOLERANCE or np.abs(sums - 1).max() > (
            _PROBABILITY_TOLERANCE * max(1, wanted / 100)
        ):
            raise ExportError(
                f"answer {named.answer!r} is no probabilities: a row adds up to {sums[0]:.4g}, "
                f"its least is {output.min():.4g} (expected 1 and at least 0; logits=True adds "
                "a softmax)"
            )
