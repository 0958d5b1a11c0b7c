"""A trained network as one ONNX file: everything inside the graph, proved, put in place whole."""

import contextlib
import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import onnx
import torch
from torch import Tensor, nn

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import ModelMetadata
from neurona_training.data import Dataset
from neurona_training.errors import ExportError
from neurona_training.metadata import answer_name
from neurona_training.parity import prove

OPSET = 20

_DYNAMIC = ("batch", "time")  # axes of any size, by their name


@runtime_checkable
class _Exportable(Protocol):
    """A module that has a simpler equal once its weights no longer change."""

    def for_export(self) -> nn.Module: ...


class _Probabilities(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.softmax(self.network(inputs), dim=1)


def export(network: nn.Module, data: Dataset, described: ModelMetadata) -> bytes:
    """An ONNX file that takes `data.input` and gives `probabilities` or `value`.

    Axes called "batch" and "time" are of any size. Raises ExportError when the graph cannot
    be made or does not answer as the network does.
    """
    answering = (_Probabilities(network) if data.is_classification else network).eval()
    model = _graph(_simplified(answering), data)
    for node in model.graph.node:
        del node.metadata_props[:]  # the exporter's notes: our source lines and their folders
    onnx.helper.set_model_props(model, {metadata.KEY: metadata.to_json(described)})
    onnx.checker.check_model(model, full_check=True)
    written: bytes = model.SerializeToString(deterministic=True)
    prove(written, answering, data.test.inputs, data.input.axes)
    return written


def write(model: bytes, path: Path) -> None:
    """Puts the file in place in one step: who looks sees the old one or all of the new one.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(model)
            file.flush()
            os.fsync(file.fileno())  # or a crash could leave the name without the bytes
        temporary.chmod(0o644)  # a temporary file is its owner's alone; a server reads this
        temporary.replace(path)
    except BaseException:
        temporary.unlink()
        raise


def _simplified(network: nn.Module) -> nn.Module:
    """A copy in which each module that has a simpler equal is replaced by it."""
    simple = copy.deepcopy(network)
    for name, module in list(simple.named_modules()):
        if isinstance(module, _Exportable):
            simple.set_submodule(name, module.for_export())
    return simple.eval()


def _graph(network: nn.Module, data: Dataset) -> onnx.ModelProto:
    dynamic = {
        axis: torch.export.Dim(name)
        for axis, name in enumerate(data.input.axes)
        if name in _DYNAMIC
    }
    # Not one row: torch takes a size of 1 in the example for a size that is always 1.
    example = torch.from_numpy(data.test.inputs[[0, -1]])
    try:
        with _quiet():
            exported = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[data.input.name],
                output_names=[answer_name(data)],
                dynamic_shapes=(dynamic,),
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
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
