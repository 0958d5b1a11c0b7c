"""Strings of any bytes go through ONNX Runtime as they are."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from support import onnx_models

from neurona_protos.tensors import decode_text, encode_text
from neurona_server.errors import InvalidArgumentError
from neurona_server.models.onnx import byte_strings
from neurona_server.models.onnx.runtime import RuntimeOptions
from neurona_server.models.onnx.session import Session

OPTIONS = RuntimeOptions(providers=("cpu",))
ANY = [b"\xff", b"a\0\xfe\0", b"", "über".encode(), b"\xed\xa0\x80", b"\x80" * 100, b"text"]


def texts(contents, shape=None):
    array = np.array([decode_text(content) for content in contents], object)
    return array if shape is None else array.reshape(shape)


def contents(array):
    return [encode_text(text) for text in array.ravel()]


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    return Session(
        onnx_models.save_echo(tmp_path_factory.mktemp("echo") / "model.onnx", "BYTES"), OPTIONS
    )


def test_the_layout_of_strings_is_known_here():
    assert byte_strings.can_read_strings()


@settings(deadline=None)
@given(
    hnp.arrays(
        object,
        st.just(()) | hnp.array_shapes(max_dims=3, min_side=0),
        elements=st.binary(max_size=40),
    )
)
def test_values_have_the_strings_they_were_made_of(array):
    strings = texts(array.ravel(), array.shape)
    returned = byte_strings.value_to_strings(byte_strings.strings_to_value(strings))
    assert returned.shape == array.shape
    assert contents(returned) == array.ravel().tolist()


@pytest.mark.slow
def test_memory_of_more_than_2_gib_is_read_whole():
    memory = np.zeros(2**31 + 5, np.uint8)
    memory[-3:] = 1, 2, 3
    content = byte_strings.read_memory(memory.ctypes.data, len(memory))
    assert (len(content), content[-4:]) == (len(memory), b"\0\1\2\3")


def test_inputs_that_are_not_utf8(echo):
    (output,) = echo.run({"x": texts(ANY, (1, len(ANY)))})
    assert output.shape == (1, len(ANY))
    assert contents(output) == ANY


def test_outputs_that_are_not_utf8_of_inputs_that_are_numbers(tmp_path):
    path = onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node("Gather", ["names", "index"], ["name"])],
        {"index": (TensorProto.INT64, ["batch"])},
        {"name": (TensorProto.STRING, ["batch"])},
    )
    model = onnx.load(path)
    names = helper.make_tensor("names", TensorProto.STRING, [2], [b"fine", b"\xe4hm"])
    model.graph.initializer.append(names)
    onnx.save(model, path)
    session = Session(path, OPTIONS)
    assert contents(session.run({"index": np.array([0])})[0]) == [b"fine"]
    assert contents(session.run({"index": np.array([1, 0])})[0]) == [b"\xe4hm", b"fine"]


def test_strings_beside_numbers_and_bfloat16(tmp_path):
    kinds = {"text": TensorProto.STRING, "bits": TensorProto.BFLOAT16, "x": TensorProto.FLOAT}
    path = onnx_models.save(
        tmp_path / "model.onnx",
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds],
        {name: (kind, ["batch"]) for name, kind in kinds.items()},
        {f"{name}_out": (kind, ["batch"]) for name, kind in kinds.items()},
    )
    session = Session(path, OPTIONS)
    bits, x = np.array([0x3F80, 1], np.uint16), np.array([0.5, -1], np.float32)
    for strings in (["a", "ü"], [b"\xff\0", b""]):
        array = texts([s.encode() if isinstance(s, str) else s for s in strings])
        text_out, bits_out, x_out = session.run({"text": array, "bits": bits, "x": x})
        assert contents(text_out) == contents(array)
        assert bits_out.tolist() == bits.tolist()
        assert x_out.tolist() == x.tolist()


def test_an_operator_that_needs_utf8_is_named_as_the_reason(tmp_path):
    session = Session(onnx_models.save_upper(tmp_path / "model.onnx"), OPTIONS)
    assert session.run({"x": texts([b"a"])})[0].tolist() == ["A"]
    with pytest.raises(InvalidArgumentError, match="strings that are not UTF-8, of 'x' .expected"):
        session.run({"x": texts([b"\xff"])})


def save_zipmap(path):
    """Save probabilities by class, as a map, for two texts; the second is no UTF-8."""
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["x"],
            ["code"],
            domain="ai.onnx.ml",
            keys_strings=[b"a", b"\xe4"],
            values_floats=[0.25, 0.75],
            default_float=0.0,
        ),
        helper.make_node(
            "ZipMap", ["code"], ["scores"], domain="ai.onnx.ml", classlabels_int64s=[7]
        ),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["n", 1])],
        [
            helper.make_value_info(
                "scores",
                helper.make_sequence_type_proto(
                    helper.make_map_type_proto(
                        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, ())
                    )
                ),
            )
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_a_model_that_returns_maps_takes_them_without_nul_bytes(tmp_path):
    session = Session(save_zipmap(tmp_path / "model.onnx"), OPTIONS)
    strings = texts([b"a", b"\xe4", b"\xe5"], (3, 1))
    assert session.run({"x": strings})[0].tolist() == [[0.25], [0.75], [0.0]]
    with pytest.raises(InvalidArgumentError, match="not UTF-8 and have NUL bytes"):
        session.run({"x": texts([b"\xe4\0"], (1, 1))})
