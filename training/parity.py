"""The proof that an ONNX graph answers as the network that it was made from."""

from collections.abc import Iterator

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from neurona_training.errors import ExportError

BATCH_SIZES = (1, 2, 7, 32)
LENGTHS = (1, 5, 8, 13, 40)  # steps of time

RELATIVE = 1e-4  # the largest difference, as a part of the answer ...
FLOOR = 1e-5  # ... and for answers near 0, as a part of the largest answer


def prove(
    model: bytes, network: nn.Module, samples: NDArray[np.float32], axes: tuple[str, ...]
) -> None:
    """Asks ONNX Runtime and `network` the same for every batch size and length of time.

    model: an ONNX file with one input and one output.
    samples: inputs as callers send them, on axes of these names.

    Raises ExportError, with the input's shape, the output and the size of the difference,
    at the first answer that differs.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the runs are short
    options.log_severity_level = 3  # what goes wrong comes back as an exception
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class of their own
        raise ExportError(f"ONNX Runtime cannot load the graph: {_line(error)}") from error
    name, answer = session.get_inputs()[0].name, session.get_outputs()[0].name
    network.eval()
    for inputs in _cases(samples, axes):
        with torch.inference_mode():
            expected = network(torch.from_numpy(inputs)).numpy()
        where = f"output {answer!r} for input {name!r} of shape {list(inputs.shape)}"
        try:
            actual = session.run([answer], {name: inputs})[0]
        except Exception as error:  # as above
            raise ExportError(f"ONNX Runtime gives no {where}: {_line(error)}") from error
        _compare(actual, expected, where)


def _cases(samples: NDArray[np.float32], axes: tuple[str, ...]) -> Iterator[NDArray[np.float32]]:
    """The samples repeated or cut to each batch size and, where there is one, each length."""
    for rows in BATCH_SIZES:
        batch = samples[np.arange(rows) % len(samples)]
        if "time" not in axes:
            yield batch
            continue
        time = axes.index("time")
        for length in LENGTHS:
            steps = np.arange(length) % samples.shape[time]
            yield np.ascontiguousarray(batch.take(steps, axis=time))


def _compare(actual: NDArray[np.float32], expected: NDArray[np.float32], where: str) -> None:
    if actual.shape != expected.shape:
        raise ExportError(
            f"{where} has shape {list(actual.shape)}; torch gives {list(expected.shape)}"
        )
    difference = np.abs(actual - expected)
    allowed = RELATIVE * np.abs(expected) + FLOOR * np.abs(expected).max()
    if not (difference <= allowed).all():  # not: any(>), which would let NaN pass
        raise ExportError(
            f"{where} differs from torch by up to {difference.max():.3g} "
            f"where torch's largest is {np.abs(expected).max():.3g}"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
