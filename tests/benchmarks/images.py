"""What encoded images cost: JPEG files of 224 x 224 pixels beside the arrays that they become.

    python tests/benchmarks/images.py [--seconds 5]

Prints the CPU time of one decoding, the rate of a server in this process with calls in
flight, and what calls of another model wait meanwhile.
"""

import argparse
import io
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.in_process_server import InProcessServer
from support.onnx_models import save

from neurona_protos.prediction_pb2 import (
    IMAGE_COLOURS_RGB,
    IMAGE_LAYOUT_CHW,
    ImageDescription,
    InputDescription,
    ModelMetadata,
    PredictRequest,
)
from neurona_protos.tensors import to_tensor
from neurona_server.models.encoded_images import ImageInput, ImageLimits
from neurona_server.models.signature import TensorSpec
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.transports.listener import ListenerOptions

DESCRIBED = ImageDescription(
    layout=IMAGE_LAYOUT_CHW,
    colours=IMAGE_COLOURS_RGB,
    width=224,
    height=224,
    white=1,
    mean=[0.485, 0.456, 0.406],
    std=[0.229, 0.224, 0.225],
)
IN_FLIGHT = 16


def save_models(root: Path) -> Path:
    """Save the mean of each channel of an image, and a model of one number."""
    save(
        root / "images" / "1" / "model.onnx",
        [helper.make_node("GlobalAveragePool", ["image"], ["means"])],
        {"image": (TensorProto.FLOAT, ["batch", 3, 224, 224])},
        {"means": (TensorProto.FLOAT, ["batch", 3, 1, 1])},
        metadata=ModelMetadata(inputs=[InputDescription(name="image", image=DESCRIBED)]),
    )
    save(
        root / "number" / "1" / "model.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ["batch", 1])},
        {"y": (TensorProto.FLOAT, ["batch", 1])},
    )
    return root


def measure_rate(server: InProcessServer, request: PredictRequest, seconds: float) -> float:
    """Return the answers a second with IN_FLIGHT calls in flight."""
    message = request.SerializeToString()
    call = server.channel.unary_unary("/neurona.v1.Prediction/Predict")
    done = [0] * IN_FLIGHT
    end = time.perf_counter() + seconds

    def send(thread: int) -> None:
        while time.perf_counter() < end:
            call(message, timeout=30)
            done[thread] += 1

    threads = [threading.Thread(target=send, args=(n,)) for n in range(IN_FLIGHT)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - started)


def measure_waits(server: InProcessServer, request: PredictRequest, seconds: float) -> list[float]:
    """Return the durations of calls of the other model, one after the other, sorted."""
    waits, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        server.prediction.Predict(request, timeout=30)
        waits.append(time.perf_counter() - started)
    return sorted(waits)


def print_waits(name: str, waits: list[float]) -> None:
    """Print how long calls of the other model took."""
    median, late = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
    print(f"another model {name}: median {median * 1e3:.2f} ms, 99 % {late * 1e3:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    seconds = parser.parse_args().seconds
    random = np.random.default_rng(0)
    small = random.integers(0, 255, (28, 28, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((224, 224), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=90
    )
    jpeg = file.getvalue()

    spec = TensorSpec("image", 1, ("batch", 3, 224, 224))
    limits = ImageLimits(1 << 30, 1 << 30, lambda _: nullcontext())
    one = ImageInput(spec, DESCRIBED)
    row = one.decode(jpeg, 0, limits)
    started, count = time.thread_time(), 200
    for _ in range(count):
        one.decode(jpeg, 0, limits)
    each = (time.thread_time() - started) / count
    print(f"decoding {len(jpeg):,} bytes: {each * 1e3:.2f} ms of CPU time")

    array = np.empty(1, object)
    array[0] = jpeg
    encoded = PredictRequest(model="images", inputs=[to_tensor("image", array)], raw_outputs=True)
    decoded = PredictRequest(
        model="images", inputs=[to_tensor("image", row[np.newaxis])], raw_outputs=True
    )
    number = PredictRequest(
        model="number", inputs=[to_tensor("x", np.ones((1, 1), np.float32))], raw_outputs=True
    )
    with tempfile.TemporaryDirectory() as folder:
        server = InProcessServer(
            save_models(Path(folder)),
            limits=Limits(max_message_bytes=8 << 20),
            options=ListenerOptions(max_message_bytes=8 << 20),
        )
        try:
            for name, request in (("arrays", decoded), ("JPEG", encoded)):
                print(f"{name}: {measure_rate(server, request, seconds):.0f} images a second")
            print_waits("alone", measure_waits(server, number, seconds / 2))
            for name, request in (("arrays", decoded), ("JPEG", encoded)):
                load = threading.Thread(target=measure_rate, args=(server, request, seconds))
                load.start()
                print_waits(f"beside {name}", measure_waits(server, number, seconds * 0.8))
                load.join()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
