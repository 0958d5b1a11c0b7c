"""Ranks the classes of an output on the device that has computed it, by a session of its own.

Its graph has ONNX's operator TopK (https://onnx.ai/onnx/operators/onnx__TopK.html). Beside the
best classes it returns, for each row, whether all values are finite and, for logits, what their
probabilities are relative to. The output itself stays on the device. Tested on the CPU provider;
not run on a GPU yet.

TopK is to give equal values in the order of their indices, but some of the CUDA provider's kernels
do not (onnxruntime's topk_impl.cuh: those of the last value are taken by thread). So one value more
is asked for, which says whether the last one has equals that are left out, and what comes back is
put in order.
"""

import logging
from typing import Any

import numpy as np
import onnxruntime

from neurona_protos.prediction_pb2 import DataType
from neurona_protos.tensors import NUMPY_DTYPES
from neurona_server.batching.ranking import RankedRows, probabilities_of
from neurona_server.batching.request import Inputs
from neurona_server.errors import LoadError
from neurona_server.models.onnx.graph_writer import (
    FLOAT,
    FLOAT16,
    INT64,
    write_model,
    write_node,
)
from neurona_server.models.onnx.runtime import CPU, Provider

log = logging.getLogger(__name__)

MAX_VAIN_RUNS = 16
"""Runs in a row whose values have to be copied all the same, because some are not finite or equal,
after which the copy without the ranking takes less time."""

_ELEMENT_TYPES = {DataType.DATA_TYPE_FLOAT: FLOAT, DataType.DATA_TYPE_FLOAT16: FLOAT16}
"""ONNX's numbers of the dtypes that can be ranked."""

RANKED_TYPES = frozenset(_ELEMENT_TYPES)

_ERRORS = 3  # log_severity_level


class ClassRanker:
    """Runs a model so that one of its outputs is ranked on the device.

    Attributes:
        failed: Whether ranking has failed once, or was in vain for MAX_VAIN_RUNS in a row: it is
            not tried again.
    """

    def __init__(
        self,
        index: int,
        dtype: DataType,
        provider: Provider,
        device_type: str,
        number: int,
        *,
        logits: bool,
    ) -> None:
        """Load the graph that ranks.

        Args:
            index: Of the output, of shape (rows, classes).
            dtype: Of the output, one of RANKED_TYPES.
            provider: Of the device, with its options.
            device_type: ONNX Runtime's name of the device's memory, as "cuda".
            number: Of the device.
            logits: Whether probabilities are wanted of the values.

        Raises:
            LoadError: The graph would not run on the device.
        """
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = _ERRORS
        settings.intra_op_num_threads = 1
        providers = [provider] if provider == CPU else [provider, CPU]
        self._session = onnxruntime.InferenceSession(
            _write_graph(_ELEMENT_TYPES[dtype], logits=logits),
            settings,
            providers,
            enable_fallback=0,
        )
        name = provider if isinstance(provider, str) else provider[0]
        if self._session.get_providers()[0] != name:
            raise LoadError(f"the ranking of classes runs without {name}")
        self._logits = logits
        self._dtype = NUMPY_DTYPES[dtype]
        self._index = index
        self._device_type = device_type
        self._number = number
        self.failed = False
        self._vain_runs = 0
        self._names: list[str] = []

    def run(
        self,
        session: onnxruntime.InferenceSession,
        inputs: Inputs,
        options: onnxruntime.RunOptions,
        count: int,
    ) -> list[Any]:
        """Run a session whose tensors all are numpy arrays, and return its outputs.

        Args:
            session: The model's session.
            inputs: Its inputs.
            options: ONNX Runtime's, of its run.
            count: How many of the best classes of each row are wanted.

        Returns:
            The outputs in the graph's order, RankedRows for the ranked one; its whole array where
            `rank` returns None or fails.
        """
        io = session.io_binding()
        for name, array in inputs.items():
            io.bind_cpu_input(name, np.ascontiguousarray(array))
        if not self._names:
            self._names = [node.name for node in session.get_outputs()]
        for index, name in enumerate(self._names):
            if index == self._index:
                io.bind_output(name, self._device_type, self._number)
            else:
                io.bind_output(name, "cpu")
        session.run_with_iobinding(io, options)
        values = io.get_outputs()
        outputs: list[Any] = [
            None if index == self._index else value.numpy() for index, value in enumerate(values)
        ]
        try:
            outputs[self._index] = self.rank(values[self._index], count)
        except Exception as error:  # ONNX Runtime raises a class of its own for each status
            self.failed = True
            log.warning("classes are ranked on the host from now on: %s", error)
        if outputs[self._index] is not None:
            self._vain_runs = 0
            return outputs
        outputs[self._index] = values[self._index].numpy()
        self._vain_runs += 1
        if self._vain_runs >= MAX_VAIN_RUNS and not self.failed:
            self.failed = True
            log.info(
                "classes are ranked on the host from now on: their values are equal, or not finite"
            )
        return outputs

    def rank(self, output: onnxruntime.OrtValue, count: int) -> RankedRows | None:
        """Rank the rows of an output on the device.

        Args:
            output: Shape (rows, classes).
            count: How many of the best classes of each row are wanted.

        Returns:
            None if only the whole output can tell: some value is NaN or infinite, or more values
            or probabilities equal the last one than are wanted.
        """
        class_count = output.shape()[1]
        io = self._session.io_binding()
        io.bind_ortvalue_input("values", output)
        io.bind_cpu_input("count", np.array([min(count + 1, class_count)], np.int64))
        names = ["best", "indices", "check", *(["total"] if self._logits else [])]
        for name in names:
            io.bind_output(name, "cpu")
        self._session.run_with_iobinding(io)
        values, indices, check, *totals = [value.numpy() for value in io.get_outputs()]
        if not np.isfinite(check).all():
            return None
        # Of logits the host ranks the probabilities, which are equal far below the best one.
        compared = probabilities_of(values, *totals) if totals else values
        if count < class_count and (compared[:, count - 1] == compared[:, count]).any():
            return None
        order = np.lexsort((indices, -values))[:, :count]
        indices = np.take_along_axis(indices, order, axis=1)
        values = np.take_along_axis(values, order, axis=1)
        return RankedRows(indices, values.astype(self._dtype, copy=False), class_count, *totals)


def _write_graph(element_type: int, *, logits: bool) -> bytes:
    """Return the ONNX model that ranks values, shape (rows, classes).

    check is the sum of 0 * value: 0, or NaN if a value is NaN or infinite.
    """
    nodes = [
        write_node("Cast", ["values"], ["floats"], to=FLOAT),
        write_node("TopK", ["floats", "count"], ["best", "indices"], axis=1),
        write_node("Mul", ["floats", "zero"], ["zeros"]),
        write_node("ReduceSum", ["zeros", "axes"], ["check"]),
    ]
    if logits:
        nodes += [
            write_node("ReduceMax", ["floats"], ["most"], axes=[1]),
            write_node("Sub", ["floats", "most"], ["differences"]),
            write_node("Exp", ["differences"], ["powers"]),
            write_node("ReduceSum", ["powers", "axes"], ["total"]),
        ]
    outputs = {"best": FLOAT, "indices": INT64, "check": FLOAT} | (
        {"total": FLOAT} if logits else {}
    )
    return write_model(
        nodes,
        {"values": (element_type, ("rows", "classes")), "count": (INT64, (1,))},
        {name: (dtype, ("rows", name)) for name, dtype in outputs.items()},
        {"zero": np.zeros((), np.float32), "axes": np.array([1], np.int64)},
    )
