import numpy as np
import onnx
from onnx import TensorProto, checker, helper, numpy_helper

from neurona_server.models.onnx.graph_writer import FLOAT, INT64, write_model, write_node


def test_a_model_is_the_one_that_onnx_writes():
    axes = np.array([1], np.int64)
    content = write_model(
        [
            write_node("ReduceMax", ["x"], ["most"], axes=[1, 2], keepdims=0),
            write_node("TopK", ["most", "k"], ["values", "indices"], axis=1),
        ],
        {"x": (FLOAT, ("batch", 300, 4)), "k": (INT64, (1,))},
        {"values": (FLOAT, ("batch", "k")), "indices": (INT64, ("batch", "k"))},
        {"axes": axes},
    )
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], axes=[1, 2], keepdims=0),
            helper.make_node("TopK", ["most", "k"], ["values", "indices"], axis=1),
        ],
        "graph",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 300, 4]),
            helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", "k"]),
            helper.make_tensor_value_info("indices", TensorProto.INT64, ["batch", "k"]),
        ],
        [numpy_helper.from_array(axes, "axes")],
    )
    expected = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model = onnx.load_from_string(content)
    checker.check_model(model, full_check=False)
    # The order of attributes, and nothing else, is free.
    for one in (model, expected):
        for node in one.graph.node:
            node.attribute.sort(key=lambda attribute: attribute.name)
    assert model == expected
