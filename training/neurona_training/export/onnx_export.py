"""A trained network as one ONNX file: everything inside the graph, and proved."""

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Protocol, cast, runtime_checkable

import onnx
import torch
from torch import Tensor, nn

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import ModelMetadata
from neurona_training.data import Dataset, Input
from neurona_training.errors import ExportError
from neurona_training.export.metadata import answer_name
from neurona_training.export.parity import DifferenceError, first_difference, notes, prove, sent

_DOMAIN, _VERSION = "ai.onnx.ml", 4  # LabelEncoder as such, of ONNX's classic machine learning


def take_strings(model: onnx.ModelProto, inputs: Sequence[Input]) -> None:
    """Puts a look-up before each input with categories, in place.

    What was an int64 input of codes takes strings of the same shape; a string that is none
    of the categories gets the code after the last of them.
    """
    for given in inputs:
        if not given.categories:
            continue
        (taken,) = [one for one in model.graph.input if one.name == given.name]
        codes = f"{given.name}_codes"
        for node in model.graph.node:
            node.input[:] = [codes if name == given.name else name for name in node.input]
        look_up = onnx.helper.make_node(
            "LabelEncoder",
            [given.name],
            [codes],
            domain=_DOMAIN,
            keys_strings=list(given.categories),
            values_int64s=range(len(given.categories)),
            default_int64=len(given.categories),
        )
        model.graph.node.insert(0, look_up)
        taken.type.tensor_type.elem_type = onnx.TensorProto.STRING
    if any(given.categories for given in inputs) and not any(
        known.domain == _DOMAIN for known in model.opset_import
    ):
        model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, _VERSION))


OPSET = 20

_DYNAMIC = ("batch", "time")  # axes of any size, by their name


@runtime_checkable
class _Exportable(Protocol):
    """A module that has a simpler equal once its weights no longer change."""

    def for_export(self) -> nn.Module: ...


class _Answering(nn.Module):
    """The network with its last step: probabilities from the logits of a classification."""

    def __init__(self, network: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.last = last

    def forward(self, *inputs: Tensor) -> Tensor:
        answer: Tensor = self.last(self.network(*inputs))
        return answer


def export(network: nn.Module, data: Dataset, described: ModelMetadata) -> bytes:
    """An ONNX file that takes `data.inputs` and gives `probabilities` or `value`.

    Axes called "batch" and "time" are of any size, and mean the same number in every input.
    An input with categories takes strings. Raises ExportError when the graph cannot
    be made or does not answer as the network does; then it names the first layer that differs.
    """
    last = nn.Softmax(dim=1) if data.is_classification else nn.Identity()
    answering = _Answering(network, last).eval()
    model = _graph(_simplified(answering), data)
    take_strings(model, data.inputs)
    noted = notes(model)
    for node in model.graph.node:
        del node.metadata_props[:]  # the exporter's notes: our source lines and their folders
    onnx.helper.set_model_props(model, {metadata.KEY: metadata.to_json(described)})
    onnx.checker.check_model(model, full_check=True)
    written: bytes = model.SerializeToString(deterministic=True)
    try:
        prove(written, answering, data)
    except DifferenceError as error:
        where = first_difference(model, noted, answering, error.arrays, sent(error.arrays, data))
        raise ExportError(f"{error}; {where or 'no single layer does'}") from error
    return written


def _simplified(network: nn.Module) -> nn.Module:
    """A copy in which each module that has a simpler equal is replaced by it."""
    simple = copy.deepcopy(network)
    for name, module in list(simple.named_modules()):
        if isinstance(module, _Exportable):
            simple.set_submodule(name, module.for_export())
    return simple.eval()


def _graph(network: nn.Module, data: Dataset) -> onnx.ModelProto:
    sizes = {name: torch.export.Dim(name) for name in _DYNAMIC}
    dynamic = tuple(
        {axis: sizes[name] for axis, name in enumerate(given.axes) if name in _DYNAMIC}
        for given in data.inputs
    )
    # Not one row: torch takes a size of 1 in the example for a size that is always 1.
    example = tuple(torch.from_numpy(array[[0, -1]]) for array in data.test.arrays)
    try:
        with _quiet():
            exported = torch.onnx.export(
                network,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=[given.name for given in data.inputs],
                output_names=[answer_name(data)],
                dynamic_shapes=(dynamic,),  # of the one parameter *inputs
                verbose=False,
            )
    except Exception as error:  # the exporter lets through whatever its passes raise
        reason = " ".join(str(error).split())[:500]
        raise ExportError(f"torch cannot export the network: {reason}") from error
    # None is what the older exporter returns, without dynamo=True.
    return cast(torch.onnx.ONNXProgram, exported).model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps to itself what the exporter says about others than the network."""
    # torch.onnx notes that torchvision's operators are absent, which we do not use, and
    # onnxscript which constants it leaves as they are.
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # torch.export uses a class of torch's own that torch 2.13 has deprecated.
            warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)
            # An axis of the same size in two inputs has its name in both, as we want it.
            warnings.filterwarnings("ignore", r".*The axis name: \w+ will not be used", UserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
