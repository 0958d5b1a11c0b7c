"""Request templates write what protobuf would have written."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurona_client import TensorSpec
from neurona_client.descriptions import ModelDescription
from neurona_client.request_templates import RequestOptions, RequestTemplate
from neurona_protos.prediction_pb2 import DescribeModelResponse, PredictRequest, Priority
from neurona_protos.tensors import NUMPY_DTYPES, dtype_name, to_array, to_tensor

FLOATS = (1, 10, 11)
PLAIN_TYPES = [
    data_type
    for data_type, dtype in NUMPY_DTYPES.items()
    if dtype.kind in "biuf" and dtype_name(data_type) != "BFLOAT16"
]


def describe(spec):
    message = DescribeModelResponse()
    return ModelDescription("m", 1, "tensors", "", (spec,), (), (), (), True, {}, {}, message)


@given(st.sampled_from(PLAIN_TYPES), st.data(), st.booleans(), st.integers(1, 300), st.booleans())
def test_a_request_is_encoded_as_protobuf_encodes_it(data_type, data, version, top_k, raw):
    array = data.draw(hnp.arrays(NUMPY_DTYPES[data_type], hnp.array_shapes(min_dims=1, max_dims=4)))
    options = RequestOptions("model", 7 if version else None, None, top_k, raw, "low")
    shape = (-1,) * array.ndim
    spec = TensorSpec("x", dtype_name(data_type), shape, data_type=data_type)
    template = RequestTemplate(options, describe(spec))
    expected = PredictRequest(
        model="model",
        inputs=[to_tensor("x", array)],
        top_k=top_k if top_k > 1 else 0,
        raw_outputs=raw,
        priority=Priority.PRIORITY_LOW,
    )
    if version:
        expected.version = 7
    for _ in range(2):  # the second time from what was stored for the shape
        request = template.encode(array)
        assert request.message == expected.SerializeToString()
        assert not request.is_sample
    transposed = template.encode(array.T)
    assert np.array_equal(
        to_array(PredictRequest.FromString(transposed.message).inputs[0]),
        array.T,
        equal_nan=data_type in FLOATS,
    )
