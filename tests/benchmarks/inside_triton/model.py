"""A model for Triton's Python backend: one run of ONNX Runtime for all requests of a batch.

It stands alone because Triton copies it into a model repository.
"""

import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def execute(self, requests):
        rows = [
            pb_utils.get_input_tensor_by_name(request, self._input).as_numpy()
            for request in requests
        ]
        batch = rows[0] if len(rows) == 1 else np.concatenate(rows)
        (output,) = self._session.run(None, {self._input: batch})
        ends = np.cumsum([len(each) for each in rows])[:-1]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(self._output, part)])
            for part in np.split(output, ends)
        ]
