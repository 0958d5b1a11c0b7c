"""What callers give as inputs, and what of it reaches the server."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurona_client import Client, InvalidInputError, ServerError, TensorSpec
from neurona_client.descriptions import Description
from neurona_client.inputs import as_array, from_bfloat16
from neurona_client.request_templates import Plan, Wish
from neurona_client.transport.framing import END_OF_IDS, FIRST_ID, IDS, answers, frame_for
from neurona_protos.frames_pb2 import PredictStreamRequest as Frames
from neurona_protos.prediction_pb2 import (
    DATA_TYPE_FLOAT,
    DATA_TYPE_STRING,
    DescribeModelResponse,
    Error,
    PredictRequest,
    PredictResponse,
    PredictStreamResponse,
    Priority,
    StreamedResponse,
)
from neurona_protos.tensors import NUMPY_DTYPES, data_type, dtype_name, to_array, to_tensor
from neurona_protos.wire_format import fields, read_varint, varint

NUMBERS = [number for number, dtype in NUMPY_DTYPES.items() if dtype.kind in "biuf"]
PLAIN = [number for number in NUMBERS if dtype_name(number) != "BFLOAT16"]


def spec(number, shape=(-1,), name="x"):
    return TensorSpec(name, dtype_name(number), shape, number=number)


def described(*specs, batched=True):
    message = DescribeModelResponse()
    return Description("m", 1, "tensors", "", specs, (), (), (), batched, {}, {}, message)


@given(st.sampled_from(PLAIN), st.data())
def test_an_array_of_the_right_dtype_is_not_touched(number, data):
    array = data.draw(hnp.arrays(NUMPY_DTYPES[number], hnp.array_shapes()))
    assert as_array(array, spec(number)) is array


@given(st.sampled_from(PLAIN), st.sampled_from(PLAIN), st.data())
def test_what_is_converted_has_the_same_values_or_is_refused(source, target, data):
    array = data.draw(hnp.arrays(NUMPY_DTYPES[source], hnp.array_shapes(max_side=4)))
    try:
        converted = as_array(array, spec(target))
    except InvalidInputError:
        return
    assert converted.dtype == NUMPY_DTYPES[target]
    for given_value, kept in zip(array.ravel().tolist(), converted.ravel().tolist(), strict=True):
        if array.dtype.kind == "f" and converted.dtype.kind == "f":
            limit = abs(given_value) * float(np.finfo(converted.dtype).eps)
            tiny = float(np.finfo(converted.dtype).tiny)
            assert kept == given_value or kept != kept or abs(kept - given_value) <= limit + tiny
        else:
            assert kept == given_value


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ([1.5], "INT64"),
        ([float("nan")], "INT32"),
        ([300], "UINT8"),
        ([-1], "UINT64"),
        ([2**53 + 1], "DOUBLE"),
        ([2**24 + 1], "FLOAT"),
        ([1e39], "FLOAT"),
        ([70000.0], "FLOAT16"),
        ([2], "BOOL"),
        ([2.0**63], "INT64"),
        ([None], "FLOAT"),
        ([1j], "FLOAT"),
        ([1], "STRING"),
        ([1e39], "BFLOAT16"),
    ],
)
def test_what_would_lose_information_is_refused(value, number):
    with pytest.raises(InvalidInputError, match="input 'x' has"):
        as_array(value, spec(named(number)))


def named(name):
    return next(number for number in NUMPY_DTYPES if dtype_name(number) == name)


@given(hnp.arrays(np.float32, hnp.array_shapes(max_side=5), elements=st.floats(width=32)))
def test_bfloat16_is_the_nearest_and_nan_stays_nan(array):
    if np.any(np.abs(array[np.isfinite(array)]) > 3.3e38):
        return
    bits = as_array(array, spec(named("BFLOAT16")))
    back = from_bfloat16(bits)
    assert np.array_equal(np.isnan(back), np.isnan(array))
    finite = np.isfinite(array)
    tolerance = np.abs(array[finite]) / 256 + 1e-38
    assert np.all(np.abs(back[finite] - array[finite]) <= tolerance)
    assert as_array(bits, spec(named("BFLOAT16"))) is bits


@given(st.sampled_from(PLAIN), st.data(), st.booleans(), st.integers(1, 300), st.booleans())
def test_a_request_is_what_protobuf_would_have_written(number, data, version, top_k, raw):
    array = data.draw(hnp.arrays(NUMPY_DTYPES[number], hnp.array_shapes(min_dims=1, max_dims=4)))
    wish = Wish("model", 7 if version else None, None, top_k, raw, "low")
    plan = Plan(wish, described(spec(number, (-1,) * array.ndim)))
    expected = PredictRequest(
        model="model",
        inputs=[to_tensor("x", array)],
        top_k=top_k if top_k > 1 else 0,
        raw_outputs=raw,
        priority=Priority.PRIORITY_LOW,
    )
    if version:
        expected.version = 7
    for _ in range(2):  # the second time from what was kept
        written = plan.write(array)
        assert written.message == expected.SerializeToString()
        assert not written.single
    transposed = plan.write(array.T)
    assert np.array_equal(
        to_array(PredictRequest.FromString(transposed.message).inputs[0]),
        array.T,
        equal_nan=number in (1, 10, 11),
    )


@given(st.lists(st.tuples(st.integers(0, END_OF_IDS - 1), st.binary(max_size=300)), max_size=20))
def test_messages_of_answers_are_read_as_protobuf_reads_them(sent):
    message = PredictStreamResponse(
        responses=[
            StreamedResponse(id=number, response=PredictResponse(model=repr(content)))
            for number, content in sent
        ]
    )
    read = answers(message.SerializeToString())
    assert [number for number, _ in read] == [number for number, _ in sent]
    for (_, outcome), (_, content) in zip(read, sent, strict=True):
        assert PredictResponse.FromString(outcome).model == repr(content)


def test_errors_in_answers_keep_their_code_and_hint():
    error = Error(code=8, message="full", retry_after_ms=20)
    message = PredictStreamResponse(responses=[StreamedResponse(id=200, error=error)])
    ((number, outcome),) = answers(message.SerializeToString())
    assert number == 200
    assert (type(outcome).__name__, str(outcome)) == ("OverloadedError", "full")
    assert outcome.retry_after == 0.02


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_are_refused_or_read(message):
    with contextlib.suppress(ServerError):
        for number, _ in answers(message):
            assert number >= 0


@given(st.integers(FIRST_ID, END_OF_IDS - 1), st.binary(max_size=40000))
def test_a_request_in_a_frame_is_what_protobuf_reads(number, request):
    frame = frame_for(len(request))
    message = frame.before + IDS[number] + frame.after + request
    (read,) = Frames.FromString(message).requests
    assert (read.id, read.request) == (number, request)


@given(st.integers(0, 2**64 - 1))
def test_a_varint_is_read_as_it_was_written(number):
    assert read_varint(varint(number), 0) == (number, len(varint(number)))
    assert list(fields(b"\x08" + varint(number), 0, 1 + len(varint(number)))) == [
        (1, 1, 1 + len(varint(number)))
    ]


VALUES = {
    "BOOL": [True, False],
    "BYTES": ["Wort", "", "ß"],
    "BF16": [1.0, -2.5],
    "FP16": [1.0, 0.1],
    "UINT64": [2**64 - 1, 0],
    "INT64": [-(2**63), 2**63 - 1],
    "FP64": [0.1, 1e300],
}


@pytest.fixture(scope="module")
def echoes(tmp_path_factory):
    from support import onnx_models
    from support.in_process_server import InProcessServer

    root = onnx_models.save_echoes(tmp_path_factory.mktemp("echoes"))
    onnx_models.save_adjustable(root / "adjustable" / "1" / "model.onnx")
    server = InProcessServer(root)
    yield f"127.0.0.1:{server.port}"
    server.stop()


@pytest.mark.parametrize("coalesce", [True, False])
@pytest.mark.parametrize("kind", [*VALUES, "INT8", "UINT8", "INT16", "UINT16", "FP32"])
def test_every_dtype_goes_there_and_back(echoes, kind, coalesce):
    values = VALUES.get(kind, [1, 2])
    with Client(echoes, coalesce=coalesce, timeout=20) as client:
        dtype = np.uint64 if kind == "UINT64" else None  # numpy alone would make them floats
        for inputs in (values, [values, values], np.array([values] * 3, dtype)):
            answer = client.predict(f"echo_{kind}", inputs)
            echo = answer.outputs["echo"]
            assert echo.shape == np.shape(inputs)
            assert (
                np.allclose(echo, inputs, rtol=1e-3)
                if kind != "BYTES"
                else (echo.tolist() == np.array(inputs).tolist())
            )


def test_an_optional_input_may_be_left_out(echoes):
    with Client(echoes, timeout=20) as client:
        assert client.predict("adjustable", [1, 2]).outputs["y"].tolist() == [2, 4]
        answer = client.predict("adjustable", {"x": [1, 2], "scale": [3]})
        assert answer.outputs["y"].tolist() == [3, 6]
        with pytest.raises(InvalidInputError, match=r"'scale' \(FLOAT \[1\], optional\)"):
            client.predict("adjustable", {"scale": [3]})


def test_dtypes_are_those_of_the_protocol():
    assert data_type(np.dtype("f4")) == named("FLOAT")


def test_text_stays_as_it_is():
    text = TensorSpec("words", "STRING", (-1,), number=DATA_TYPE_STRING)
    assert as_array([b"a\0", "b\0", b"\xff"], text).tolist() == [b"a\0", "b\0", b"\xff"]
    assert as_array(b"a\0", text).tolist() == b"a\0"
    for given_ in (["a", 1], [["a"], ["b", "c"]], [None]):
        with pytest.raises(InvalidInputError, match="expected text"):
            as_array(given_, text)


def test_masked_values_are_refused():
    floats = TensorSpec("x", "FLOAT", (-1,), number=DATA_TYPE_FLOAT)
    values = np.ma.masked_array(np.ones(3, np.float32), mask=[0, 1, 0])
    with pytest.raises(InvalidInputError, match="masked"):
        as_array(values, floats)
    assert as_array(values[:1], floats).tolist() == [1.0]
