"""Options of providers in a whole server: read from all places, and errors where they are made."""

import numpy as np
from support import onnx_models
from support.server_process import run_neurona_serve

from neurona_protos.prediction_pb2 import ListModelsRequest, PredictRequest, State
from neurona_protos.prediction_pb2_grpc import ModelsStub, PredictionStub
from neurona_protos.tensors import to_tensor


def test_an_unknown_option_ends_the_server(tmp_path):
    done = run_neurona_serve("--repository", tmp_path, "--provider-options", "cuda.use_tf3=1")
    assert done.returncode == 1
    assert "option provider_options: cuda.use_tf3 is an unknown key; did you mean" in done.stderr


def test_a_server_with_options_serves_and_names_the_errors_of_models(serve, tmp_path):
    settings = {
        "good": "[provider_options.cuda]\nprefer_nhwc = 1",
        "unknown": "[provider_options.cuda]\nnhwc = 1",
        "unsafe": '[provider_options.tensorrt]\ntrt_extra_plugin_lib_paths = "/tmp/x.so"',
    }
    for name, text in settings.items():
        onnx_models.save_classifier(tmp_path / name / "1" / "model.onnx")
        (tmp_path / name / "model.toml").write_text(text)
    server = serve(tmp_path, "--provider-options", "cuda.use_tf32=0,tensorrt.trt_fp16_enable=true")
    request = PredictRequest(model="good", inputs=[to_tensor("x", np.ones((1, 4), np.float32))])
    assert PredictionStub(server.channel).Predict(request, timeout=20).version == 1
    models = {
        model.model: model.versions[0] if model.versions else model
        for model in ModelsStub(server.channel).List(ListModelsRequest(), timeout=10).models
    }
    assert models["good"].state == State.STATE_READY
    assert "cuda.nhwc is an unknown key" in str(models["unknown"])
    assert "expected it in the server" in str(models["unsafe"])
