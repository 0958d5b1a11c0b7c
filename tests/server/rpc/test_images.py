"""Encoded images in requests of both protocols: the answers, and what bad images do to others."""

import struct
import threading
import weakref
import zlib
from pathlib import Path

import grpc
import numpy as np
import pytest

pytest.importorskip("PIL", reason="needs Pillow")

from PIL import Image
from support.image_models import DESCRIBED, save_image_models
from support.in_process_server import InProcessServer
from support.pictures import COLOUR, GREY, encode

from neurona_client import Client, EncodedImage, InvalidInputError, TensorSpec
from neurona_client.images import image_to_array
from neurona_protos.open_inference_pb2 import ModelInferRequest
from neurona_protos.prediction_pb2 import (
    DATA_TYPE_FLOAT,
    PredictRequest,
    PredictStreamRequest,
    StreamedRequest,
    UnloadModelRequest,
)
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.rpc import image_requests
from neurona_server.rpc.image_workers import ImageWorkers

PNG = encode(Image.fromarray(GREY), "PNG")
JPEG = encode(Image.fromarray(np.kron(COLOUR, np.ones((4, 5, 1), np.uint8))), "JPEG")
INK = encode(Image.fromarray(255 - GREY // 4), "PNG")
SPEC = TensorSpec("image", "FLOAT", (-1, 8, 8), data_type=DATA_TYPE_FLOAT, image=DESCRIBED["grey"])


@pytest.fixture(scope="module")
def server(tmp_path_factory, transport):
    server = InProcessServer(save_image_models(tmp_path_factory.mktemp("images")))
    yield server
    server.stop()


def strings(*contents, axes=1):
    array = np.empty(len(contents), object)
    array[:] = contents
    return array if axes == 1 else array[:, np.newaxis]


def predict_request(model, images, **others):
    tensors = [to_tensor("image", images), *(to_tensor(n, a) for n, a in others.items())]
    return PredictRequest(model=model, inputs=tensors, raw_outputs=True)


def predict(server, model, images, **others):
    response = server.prediction.Predict(predict_request(model, images, **others), timeout=20)
    return to_array(response.outputs[0])


def infer_request(model, images, *, raw=True):
    request = ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=images.shape)
    contents = images.ravel().tolist()
    if raw:
        packed = b"".join(struct.pack("<I", len(one)) + one for one in contents)
        request.raw_input_contents.append(packed)
    else:
        tensor.contents.bytes_contents.extend(contents)
    return request


def infer(server, model, images, *, raw=True):
    response = server.triton.ModelInfer(infer_request(model, images, raw=raw), timeout=20)
    shape = response.outputs[0].shape
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(shape)


def predict_error(server, model, images, **others):
    with pytest.raises(grpc.RpcError) as caught:
        predict(server, model, images, **others)
    return caught.value.code().name, caught.value.details()


def test_the_answer_is_that_to_the_array_of_the_client(server):
    images = [PNG, JPEG, INK]
    expected = np.stack([image_to_array(one, SPEC) for one in images])
    for axes in (1, 2):
        assert np.array_equal(predict(server, "grey", strings(*images, axes=axes)), expected)
        for raw in (True, False):
            answer = infer(server, "grey", strings(*images, axes=axes), raw=raw)
            assert np.array_equal(answer, expected)
    assert np.array_equal(predict(server, "grey", expected), expected)


def test_a_large_message_has_its_images_read_without_being_parsed(server):
    images = [PNG] * 600
    assert len(b"".join(images)) > 1 << 15
    expected = image_to_array(PNG, SPEC)
    for answer in (
        predict(server, "grey", strings(*images)),
        infer(server, "grey", strings(*images)),
        infer(server, "grey", strings(*images), raw=False),
    ):
        assert answer.shape == (600, 8, 8)
        assert np.array_equal(answer, np.broadcast_to(expected, answer.shape))


def test_a_stream_has_images_and_arrays(server):
    array = image_to_array(JPEG, SPEC)[np.newaxis]
    requests = [
        predict_request("grey", strings(JPEG) if number % 2 else array) for number in range(40)
    ]
    requests[7] = predict_request("grey", strings(b"GIF89a"))
    message = PredictStreamRequest(
        requests=[StreamedRequest(id=n + 1, request=one) for n, one in enumerate(requests)]
    )
    answers = {}
    for responses in server.prediction.PredictStream(iter([message]), timeout=20):
        answers |= {one.id: one for one in responses.responses}
    assert sorted(answers) == [*range(1, 41)]
    assert "expected PNG or JPEG" in answers.pop(8).error.message
    for one in answers.values():
        assert np.array_equal(to_array(one.response.outputs[0]), array)


def test_the_settings_of_a_model_say_how_its_images_are_normalised(server):
    picture = Image.fromarray(np.kron(COLOUR, np.ones((5, 5, 1), np.uint8)))  # 40 x 40
    answer = predict(server, "imagenet", strings(encode(picture, "PNG")))[0]
    scaled = picture.resize((10, 10), Image.Resampling.BILINEAR).crop((1, 1, 9, 9))
    levels = np.asarray(scaled, np.float32) / 255
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    np.testing.assert_allclose(answer.transpose(1, 2, 0), (levels - mean) / std, atol=0.02)


def test_images_of_any_size_are_taken_as_they_are_but_equal_ones_in_a_request(server):
    tall = encode(Image.fromarray(np.vstack([GREY, GREY])), "PNG")
    assert np.array_equal(predict(server, "free", strings(tall, tall))[1, 8:], GREY)
    assert np.array_equal(predict(server, "free", strings(PNG)), GREY[np.newaxis])
    code, details = predict_error(server, "free", strings(tall, PNG))
    assert code == "INVALID_ARGUMENT"
    assert "row 1: 8 x 8 pixels (expected 8 x 16 as of row 0" in details


def test_images_become_integers_and_doubles_too(server):
    picture = encode(Image.fromarray(COLOUR[:4, :6]), "PNG")
    assert np.array_equal(predict(server, "bytes", strings(picture))[0], COLOUR[:4, :6])
    for images in (strings(picture), strings(picture, axes=2), strings(picture).reshape(())):
        answer = predict(server, "one", images)
        assert answer.dtype == np.float64
        assert np.array_equal(answer, COLOUR[:4, :6].transpose(2, 0, 1))
    code, details = predict_error(server, "one", strings(picture, picture))
    assert code == "INVALID_ARGUMENT"
    assert "the model takes one image" in details


def test_images_go_with_other_inputs(server):
    numbers = np.float32([[1], [2]])
    answer = predict(server, "pair", strings(PNG, INK), number=numbers)
    assert np.array_equal(answer[0], image_to_array(PNG, SPEC))
    code, details = predict_error(server, "pair", strings(PNG), number=numbers)
    assert code == "INVALID_ARGUMENT"
    assert "its 'batch' is 2, that of another input 1" in details
    assert predict_error(server, "pair", strings(PNG))[0] == "INVALID_ARGUMENT"


def test_an_image_has_the_size_that_another_input_gives(server):
    image, mask = encode(Image.fromarray(COLOUR[:6]), "PNG"), np.ones((1, 1, 6, 8), np.float32)
    answer = predict(server, "masked", strings(image), mask=mask)
    assert np.array_equal(answer[0], COLOUR[:6].transpose(2, 0, 1) + np.float32(1))
    code, details = predict_error(server, "masked", strings(image), mask=mask[:, :, :5])
    assert code == "INVALID_ARGUMENT"
    assert "its 'height' is 5, that of another input 6 (expected equal sizes)" in details


def test_a_model_without_a_description_of_images_says_how_to_declare_them(server):
    code, details = predict_error(server, "undeclared", strings(PNG))
    assert code == "INVALID_ARGUMENT"
    assert "is STRING of shape [1] (expected FLOAT of shape [batch, 8, 8])" in details
    assert "[inputs.image.image] in the model's model.toml" in details
    with pytest.raises(grpc.RpcError, match=r"\[inputs\.image\.image\]"):
        infer(server, "undeclared", strings(PNG))
    request = ModelInferRequest(model_name="grey")
    request.inputs.add(name="image", datatype="INT32", shape=[1])
    with pytest.raises(grpc.RpcError, match="is 'INT32', but model 'grey' expects 'FP32'"):
        server.triton.ModelInfer(request, timeout=20)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (b"", "unknown image format (expected PNG or JPEG)"),
        (b"no picture", "unknown image format (expected PNG or JPEG)"),
        ("text as text", "unknown image format (expected PNG or JPEG)"),
        (encode(Image.fromarray(GREY), "GIF"), "unknown image format (expected PNG or JPEG)"),
        (encode(Image.fromarray(COLOUR), "WEBP"), "unknown image format (expected PNG or JPEG)"),
        (encode(Image.fromarray(GREY), "TIFF"), "unknown image format (expected PNG or JPEG)"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unknown image format"),
        (PNG[: len(PNG) // 2], "unreadable image"),
        (JPEG[:-100], "truncated"),
        (JPEG + 200 * b"\xff\xda", "too many scans"),
    ],
    ids=[
        *("empty", "words", "text", "gif", "webp", "tiff", "svg"),
        *("half-png", "half-jpeg", "scans"),
    ],
)
def test_the_error_names_the_row_and_what_is_wrong(server, image, problem):
    code, details = predict_error(server, "grey", strings(PNG, image, b"also bad"))
    assert code == "INVALID_ARGUMENT"
    assert details.startswith("input 'image' row 1: ")
    assert problem in details


@pytest.mark.parametrize("shape", [(0,), (1, 2), (2, 1, 1), ()])
def test_strings_of_another_shape_are_rejected(server, shape):
    images = np.empty(shape, object)
    images[...] = PNG
    code, details = predict_error(server, "grey", images)
    assert code == "INVALID_ARGUMENT"
    assert f"shape {list(shape)} (expected [rows] or [rows, 1]" in details


def bomb(width, height):
    """Return a PNG whose header says this size, and whose pixels are missing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    end = b"IEND"
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(header))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + bytes(4)
        + end
        + struct.pack(">I", zlib.crc32(end))
    )


def test_a_bomb_is_refused_by_its_header(server):
    for width, height in ((10_000, 10_000), (65_535, 65_535), (2**31 - 1, 2**31 - 1)):
        code, details = predict_error(server, "grey", strings(bomb(width, height)))
        assert code == "INVALID_ARGUMENT"
        assert "too large" in details
        assert "at most 50000000" in details


def test_narrow_and_tiny_images_are_taken(server):
    line = np.tile(np.arange(256, dtype=np.uint8), 255)[np.newaxis]
    for levels in (line, line.T, np.full((1, 1), 77, np.uint8)):
        image = encode(Image.fromarray(levels), "PNG")
        for model in ("grey", "imagenet"):
            assert predict(server, model, strings(image)).shape[-2:] == (8, 8)


def test_bad_images_leave_their_neighbours_alone(server):
    random = np.random.default_rng(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(Image.fromarray(GREY), "JPEG", exif=exif, quality=95)
    garbage = encode(Image.fromarray(GREY), "JPEG", exif=b"Exif\0\0" + random.bytes(300))
    hostile = [JPEG[:end] for end in range(0, len(JPEG), 100)]
    hostile += [random.bytes(200) for _ in range(10)]
    hostile += [JPEG[:50] + random.bytes(len(JPEG) - 50), PNG[:40] + random.bytes(400), garbage]
    expected = np.stack([image_to_array(one, SPEC) for one in (turned, JPEG)])
    outcomes = []

    def send(image):
        call = server.prediction.Predict.future(predict_request("grey", strings(image)), timeout=30)
        outcomes.append(call)

    neighbours = []
    for image in hostile:
        send(image)
        request = predict_request("grey", strings(turned, JPEG))
        neighbours.append(server.prediction.Predict.future(request, timeout=30))
    for call in neighbours:
        assert np.array_equal(to_array(call.result().outputs[0]), expected)
    for image, call in zip(hostile, outcomes, strict=True):
        if call.exception() is not None:
            assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert call.details().startswith("input 'image' row 0: ")
        else:  # garbled pixels of a complete file, or EXIF data that say nothing
            assert np.array_equal(
                to_array(call.result().outputs[0])[0], image_to_array(image, SPEC)
            )
    assert outcomes[-1].exception() is None


@pytest.fixture
def slow_decoding(monkeypatch):
    """Makes each image wait for an event, and counts those that are decoded."""
    go, decoded = threading.Event(), []
    decode_row = image_requests.ImageRequest._decode_row

    def decode(self, name, row):
        go.wait(20)
        decoded.append(row)
        return decode_row(self, name, row)

    monkeypatch.setattr(image_requests.ImageRequest, "_decode_row", decode)
    yield go, decoded
    go.set()


def outcome(server, name):
    return server.count("requests_total", model="grey", version="1", outcome=name)


def test_others_are_answered_while_images_are_decoded(server, slow_decoding):
    go, _ = slow_decoding
    call = server.prediction.Predict.future(predict_request("grey", strings(PNG)), timeout=20)
    array = np.ones((1, 8, 8), np.float32)
    for _ in range(20):
        assert np.array_equal(predict(server, "grey", array), array)
    assert not call.done()
    go.set()
    assert np.array_equal(to_array(call.result().outputs[0])[0], image_to_array(PNG, SPEC))


@pytest.mark.parametrize("leave", ["cancel", "deadline"])
def test_nothing_is_decoded_for_a_caller_that_has_left(server, slow_decoding, wait_until, leave):
    go, decoded = slow_decoding
    images = server.workers.images
    before = outcome(server, "cancelled") + outcome(server, "expired")
    request = predict_request("grey", strings(*[PNG] * 500))
    call = server.prediction.Predict.future(request, timeout=20 if leave == "cancel" else 0.3)
    wait_until(lambda: images.waiting_bytes > 0)
    if leave == "cancel":
        call.cancel()
    else:
        assert call.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
    threading.Event().wait(0.1)  # the cancellation is on its way
    go.set()
    wait_until(lambda: outcome(server, "cancelled") + outcome(server, "expired") == before + 1)
    assert len(decoded) <= images._max_threads
    wait_until(lambda: images.waiting_bytes == 0)


def test_too_many_bytes_are_rejected_with_a_time_to_retry(server, slow_decoding, monkeypatch):
    go, _ = slow_decoding
    monkeypatch.setattr("neurona_server.rpc.image_workers.MAX_WAITING_BYTES", 1000)
    first = server.prediction.Predict.future(predict_request("grey", strings(PNG)), timeout=20)
    second = server.prediction.Predict.future(
        predict_request("grey", strings(PNG, PNG, PNG)), timeout=20
    )
    assert second.exception().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "are being decoded" in second.details()
    go.set()
    assert first.exception() is None


def test_rows_that_the_queue_would_not_hold_are_not_decoded(server, monkeypatch):
    model = server.registry.resolve("grey")
    monkeypatch.setattr(
        model.batcher, "policy", model.batcher.policy.__class__(max_queue_bytes=1000)
    )
    code, details = predict_error(server, "grey", strings(*[PNG] * 4))
    assert code == "INVALID_ARGUMENT"
    assert "1024 bytes once it is decoded (expected at most 1000)" in details


def test_a_model_is_freed_after_images_of_it_without_the_collector(
    tmp_path, wait_until, without_collector
):
    server = InProcessServer(save_image_models(tmp_path), explicit=True, load_model=["grey"])
    try:
        model = weakref.ref(server.registry.resolve("grey"))
        for images in (strings(PNG), strings(b"bad"), strings(JPEG, PNG)):
            call = server.prediction.Predict.future(predict_request("grey", images), timeout=20)
            call.exception()
        server.models.Unload(UnloadModelRequest(model="grey"), timeout=20)
        wait_until(lambda: without_collector() or model() is None)
    finally:
        server.stop()


def test_large_images_wait_for_room():
    workers = ImageWorkers()
    inside = threading.Event()

    def decode():
        with workers.reserve(300_000_000):
            inside.set()

    with workers.reserve(300_000_000):
        thread = threading.Thread(target=decode)
        thread.start()
        assert not inside.wait(0.05)
    thread.join(10)
    assert inside.is_set()


def test_without_pillow_the_error_names_the_extra(server, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    code, details = predict_error(server, "grey", strings(PNG))
    assert code == "UNIMPLEMENTED"
    assert "the extra 'images'" in details
    monkeypatch.undo()
    assert predict(server, "grey", strings(PNG)).shape == (1, 8, 8)


@pytest.fixture(scope="module")
def client(server):
    with Client(f"127.0.0.1:{server.port}") as client:
        yield client


def test_the_client_reads_a_file_as_the_server_does(server, client, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(JPEG)
    assert client.describe("imagenet").inputs[0].image.shorter_side == 10
    local = client.predict("imagenet", path, raw_outputs=True).outputs["same"]
    assert np.array_equal(local, predict(server, "imagenet", strings(JPEG))[0])
    for image in (EncodedImage(path), EncodedImage(JPEG)):
        sent = client.predict("imagenet", image, raw_outputs=True).outputs["same"]
        assert np.array_equal(sent, local)
    several = client.predict("imagenet", [EncodedImage(JPEG), EncodedImage(PNG)], raw_outputs=True)
    assert np.array_equal(several[0].outputs["same"], local)
    one = client.predict("one", EncodedImage(JPEG), raw_outputs=True)
    assert one[0].outputs["same"].shape == (4, 6)


def test_a_client_without_pillow_lets_the_server_decode(server, client, monkeypatch):
    expected = predict(server, "grey", strings(PNG))[0]
    send = client.predict
    monkeypatch.setattr("neurona_client.inputs._has_pillow", lambda: False)
    assert np.array_equal(send("grey", PNG, raw_outputs=True).outputs["same"], expected)
    with pytest.raises(InvalidInputError, match="takes no encoded images"):
        send("undeclared", EncodedImage(PNG))
    with pytest.raises(InvalidInputError, match="cannot be read"):
        send("grey", EncodedImage(Path("missing.png")))
