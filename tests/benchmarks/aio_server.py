"""The baseline: one model behind grpc.aio and ONNX Runtime, with one run for each request.

    python aio_server.py MODEL.onnx ADDRESS

It is what a careful engineer writes by hand in an afternoon, with the messages of neurona.v1.
"""

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc.aio
import numpy as np
import onnxruntime

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import PredictRequest, PredictResponse, Tensor
from neurona_protos.prediction_pb2_grpc import PredictionServicer, add_PredictionServicer_to_server
from neurona_protos.tensors import to_tensor

SHORT_RUN = 1e-3  # seconds; a longer run would block the event loop

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # With more than 1,000 calls that Python has not accepted, gRPC cancels some.
    ("grpc.server.max_pending_requests", 1 << 20),
    ("grpc.server.max_pending_requests_hard_limit", 1 << 20),
]


def _session(path: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Spinning threads would take cores from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Predictor(PredictionServicer):
    def __init__(self, path: str) -> None:
        self._session = _session(path, threads=1)
        text = self._session.get_modelmeta().custom_metadata_map.get(metadata.KEY, "{}")
        self._labels = list(metadata.from_json(text).labels)
        self._output = self._session.get_outputs()[0].name
        self._executor = None
        if not self._is_short():
            self._session = _session(path, threads=0)
            self._executor = ThreadPoolExecutor(1)

    def _is_short(self) -> bool:
        (model_input,) = self._session.get_inputs()
        shape = [size if isinstance(size, int) else 1 for size in model_input.shape]
        if "time" in model_input.shape:
            shape[model_input.shape.index("time")] = 20
        feeds = {model_input.name: np.zeros(shape, np.float32)}
        self._session.run(None, feeds)
        start = time.perf_counter()
        self._session.run(None, feeds)
        return time.perf_counter() - start < SHORT_RUN

    async def Predict(  # noqa: N802, gRPC's spelling
        self, request: PredictRequest, context: grpc.aio.ServicerContext
    ) -> PredictResponse:
        try:
            feeds = {tensor.name: _array(tensor) for tensor in request.inputs}
            if self._executor is None:
                (output,) = self._session.run(None, feeds)
            else:
                loop = asyncio.get_running_loop()
                run = loop.run_in_executor(self._executor, self._session.run, None, feeds)
                (output,) = await run
        except (ValueError, RuntimeError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response = PredictResponse(model=request.model, version=1)
        if not self._labels:
            response.outputs.append(to_tensor(self._output, output))
            return response
        rows = response.classification.rows
        for row, best in zip(output, output.argmax(axis=1).tolist(), strict=True):
            rows.add(labels=[self._labels[best]], indices=[best], probabilities=[row[best]])
        return response


def _array(tensor: Tensor) -> np.ndarray:
    return np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)


async def serve(path: str, address: str) -> None:
    server = grpc.aio.server(options=OPTIONS)
    add_PredictionServicer_to_server(Predictor(path), server)
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
