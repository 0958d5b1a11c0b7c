"""A thousand pictures of published data sets: the server's decoding beside the client's own."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

pytest.importorskip("PIL", reason="needs Pillow")

from PIL import Image
from support.in_process_server import InProcessServer
from support.onnx_models import save
from support.pictures import encode

from neurona_client import Client, EncodedImage
from neurona_protos.prediction_pb2 import ImageDescription, InputDescription, ModelMetadata, Task

SHARED = Path(os.environ.get("NEURONA_SHARED", ""))
CNN_TOML = """
[inputs.Input3.image]
range = [0, 1]
mean = [0.1307]
std = [0.3081]
"""


def digits():
    content = gzip.decompress((SHARED / "data/mnist/t10k-images-idx3-ubyte.gz").read_bytes())
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)


def x_rays():
    arrays = np.load(SHARED / "data/pneumoniamnist/pneumoniamnist_full.npz")
    return arrays["test_images"], arrays["train_images"], arrays["train_labels"].ravel()


def pictures(images):
    """Return files of all sizes and of several kinds, in turns."""
    random = np.random.default_rng(7)
    for number, levels in enumerate(images):
        width, height = random.integers(20, 300, 2)
        picture = Image.fromarray(levels).resize((int(width), int(height)))
        picture = picture.convert(("L", "RGB", "LA", "CMYK")[number % 4])
        kind = "JPEG" if number % 4 in (1, 3) or number % 8 == 0 else "PNG"
        options = {"quality": 90, "progressive": number % 3 == 0} if kind == "JPEG" else {}
        yield encode(picture, kind, **options)


def save_centres(path, images, labels):
    """Save a classifier by the distance to the mean picture of each class."""
    means = np.stack([images[labels == label].mean(axis=0).ravel() for label in (0, 1)])
    return save(
        path,
        [
            helper.make_node("Flatten", ["image"], ["row"]),
            helper.make_node("Gemm", ["row", "weights", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        {"image": (TensorProto.FLOAT, ["batch", 28, 28])},
        {"probabilities": (TensorProto.FLOAT, ["batch", 2])},
        {
            "weights": (means.T / 10_000).astype(np.float32),
            "bias": (-0.5 * (means**2).sum(axis=1) / 10_000).astype(np.float32),
        },
        ModelMetadata(
            task=Task.TASK_CLASSIFICATION,
            answer="probabilities",
            labels=["normal", "pneumonia"],
            inputs=[
                InputDescription(
                    name="image", image=ImageDescription(width=28, height=28, white=255)
                )
            ],
        ),
    )


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("NEURONA_SHARED"), reason="NEURONA_SHARED is not set")
@pytest.mark.parametrize("count", [60, pytest.param(500, marks=pytest.mark.long)])
def test_pictures_have_the_class_that_the_client_finds(tmp_path, count):
    """Of two data sets, `count` pictures of each."""
    path = SHARED / "onnx/ort_cnn_mnist_pytorch/model.onnx"
    if not path.is_file() or not (SHARED / "data/mnist").is_dir():
        pytest.skip(f"no data sets in {SHARED} (NEURONA_SHARED)")
    import onnxruntime

    name = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0]
    (tmp_path / "cnn" / "1").mkdir(parents=True)
    (tmp_path / "cnn" / "1" / "model.onnx").write_bytes(path.read_bytes())
    (tmp_path / "cnn" / "model.toml").write_text(CNN_TOML.replace("Input3", name.name))
    test_images, *training = x_rays()
    save_centres(tmp_path / "centres" / "1" / "model.onnx", *training)
    server = InProcessServer(tmp_path)
    try:
        with Client(f"127.0.0.1:{server.port}", timeout=60) as client:
            for model, images in (("cnn", digits()), ("centres", test_images)):
                files = [*pictures(images[:count])]
                sent = [client.predict(model, EncodedImage(one), raw_outputs=True) for one in files]
                local = [client.predict(model, one, raw_outputs=True) for one in files]
                for one, other in zip(sent, local, strict=True):
                    (ours,), (theirs,) = one.outputs.values(), other.outputs.values()
                    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
                    assert np.argmax(ours) == np.argmax(theirs)
                assert len(files) == count
                assert len({int(np.argmax(next(iter(one.outputs.values())))) for one in sent}) > 1
    finally:
        server.stop()
