"""L0_infer_zero and L0_infer_reshape: axes of length 0, and shapes that the config declares."""

import numpy as np
import pytest
from support import triton_models
from support.triton_calls import values_of

ZEROS = {
    "ff1_sanity": ("FP32", [[1]]),
    "ff1": ("FP32", [[0]]),
    "ff3_sanity": ("FP32", [[1], [2], [1]]),
    "ff3_0": ("FP32", [[0], [0], [0]]),
    "ff3_1": ("FP32", [[0], [0], [1]]),
    "ff3_2": ("FP32", [[0], [1], [0]]),
    "ff3_3": ("FP32", [[1], [0], [0]]),
    "ff3_4": ("FP32", [[1], [0], [1]]),
    "hh1_sanity": ("FP16", [[2, 2]]),
    "hh1_0": ("FP16", [[1, 0]]),
    "hh1_1": ("FP16", [[0, 1]]),
    "hh1_2": ("FP16", [[0, 0]]),
    "hh3_sanity": ("FP16", [[2, 2], [2, 2], [1, 1]]),
    "hh3_0": ("FP16", [[0, 0], [0, 0], [0, 0]]),
    "hh3_1": ("FP16", [[0, 1], [0, 1], [2, 3]]),
    "hh3_2": ("FP16", [[1, 0], [1, 3], [0, 1]]),
    "hh3_3": ("FP16", [[1, 1], [3, 0], [0, 0]]),
    "hh3_4": ("FP16", [[1, 1], [0, 6], [2, 2]]),
    "oo1_sanity": ("BYTES", [[2]]),
    "oo1": ("BYTES", [[0]]),
    "oo3_sanity": ("BYTES", [[2, 2], [2, 2], [1, 1]]),
    "oo3_0": ("BYTES", [[0, 0], [0, 0], [0, 0]]),
    "oo3_1": ("BYTES", [[0, 1], [0, 1], [2, 3]]),
    "oo3_2": ("BYTES", [[1, 0], [1, 3], [0, 1]]),
    "bb1_sanity": ("BOOL", [[10]]),
    "bb1_0": ("BOOL", [[0]]),
}
RESHAPES = {
    "ff1": ("FP32", [[1]], None, {0: []}),
    "ff2": ("FP32", [[1], [8]], None, {0: [], 1: [4, 1, 2]}),
    "ff3": (
        "FP32",
        [[4, 4], [2], [2, 2, 3]],
        None,
        {0: [4, 2, 2], 1: [1, 2, 1], 2: [3, 2, 2]},
    ),
    "ff4": (
        "FP32",
        [[4, 4], [2], [2, 2, 3], [1]],
        [[16], [1, 2], [3, 2, 2], [1]],
        {0: [4, 2, 2], 1: [1, 2, 1], 2: [3, 2, 2], 3: [1, 1, 1]},
    ),
    "ii1": ("INT32", [[2, 4, -1, 6]], None, {0: [8, -1, 6]}),
    "ii2": ("INT32", [[-1, 1], [-1]], [[1, -1], [1, -1]], {0: [1, -1], 1: [1, -1]}),
    "ii3": ("INT32", [[1, 4, 1], [-1], [2, 2, 3]], None, {0: [4], 1: [-1, 1], 2: [4, 3]}),
    "oo1": ("BYTES", [[1]], None, {0: []}),
}
"""Datatype, dims of the inputs and of the outputs, and the shapes of the graph."""

WITHOUT_BATCH = [name for name, (*_, reshapes) in RESHAPES.items() if all(reshapes.values())]


def zero_model(kind, count, rank, suffix=""):
    return f"zero_{count}_{rank}_{kind}{suffix}"


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    for kind, shapes in ZEROS.values():
        count, rank = len(shapes), len(shapes[0])
        if (root / zero_model(kind, count, rank)).exists():
            continue
        for suffix, first, rows in (("", ["batch"], 8), ("_nobatch", [], 0)):
            folder = root / zero_model(kind, count, rank, suffix)
            names = [[*first, *[f"n{i}_{j}" for j in range(rank)]] for i in range(count)]
            triton_models.save_identities(folder / "1" / "model.onnx", kind, names)
            dims = [[-1] * rank] * count
            config = triton_models.identities_config(kind, dims, max_batch_size=rows)
            triton_models.write_config(folder, config)
    for name, (kind, inputs, outputs, reshapes) in RESHAPES.items():
        for suffix, first, rows in (("", ["batch"], 8), ("_nobatch", [], 0)):
            if suffix and name not in WITHOUT_BATCH:
                continue
            folder = root / f"reshape_{name}{suffix}"
            shapes = [
                [*first, *[f"n{i}" if size < 0 else size for size in reshapes[i]]]
                for i in range(len(inputs))
            ]
            triton_models.save_identities(folder / "1" / "model.onnx", kind, shapes)
            config = triton_models.identities_config(
                kind, inputs, outputs=outputs, reshapes=reshapes, max_batch_size=rows
            )
            triton_models.write_config(folder, config)
    return serve(root, "--threads", "1").triton


def check(server, model, kind, shapes, expected=None):
    inputs = {f"INPUT{i}": (kind, values_of(kind, shape, 3 * i)) for i, shape in enumerate(shapes)}
    response = server.infer(model, inputs)
    for index, shape in enumerate(expected or shapes):
        tensor = response.message.outputs[index]
        assert (tensor.name, tensor.datatype) == (f"OUTPUT{index}", kind)
        assert [*tensor.shape] == [*shape]
        _, sent = inputs[f"INPUT{index}"]
        assert response.arrays[tensor.name].ravel().tolist() == sent.ravel().tolist()


@pytest.mark.triton("L0_infer_zero", cause="axes of length 0")
@pytest.mark.parametrize(("kind", "shapes"), ZEROS.values(), ids=ZEROS)
def test_axes_of_length_0(server, kind, shapes):
    model = zero_model(kind, len(shapes), len(shapes[0]))
    for rows in (1, 8):
        check(server, model, kind, [[rows, *shape] for shape in shapes])
    check(server, f"{model}_nobatch", kind, shapes)


@pytest.mark.triton("L0_infer_zero", cause="axes of length 0")
def test_requests_of_length_0_share_a_batch(server):
    empty = values_of("FP32", (1, 0))
    calls = [
        server.start("zero_1_1_FP32", {"INPUT0": ("FP32", value)})
        for value in [empty, values_of("FP32", (1, 2)), empty, values_of("FP32", (3, 2))] * 5
    ]
    shapes = [[*call.result().outputs[0].shape] for call in calls]
    assert shapes == [[1, 0], [1, 2], [1, 0], [3, 2]] * 5


def sized(dims):
    return [5 if size < 0 else size for size in dims]


@pytest.mark.triton("L0_infer_reshape", cause="reshape")
@pytest.mark.parametrize("name", RESHAPES)
def test_reshape(server, name):
    kind, inputs, outputs, _ = RESHAPES[name]
    for rows in (1, 8):
        check(
            server,
            f"reshape_{name}",
            kind,
            [[rows, *sized(dims)] for dims in inputs],
            [[rows, *sized(dims)] for dims in outputs or inputs],
        )


@pytest.mark.triton("L0_infer_reshape", cause="reshape")
@pytest.mark.parametrize("name", WITHOUT_BATCH)
def test_reshape_without_batch(server, name):
    kind, inputs, outputs, _ = RESHAPES[name]
    check(
        server,
        f"reshape_{name}_nobatch",
        kind,
        [sized(dims) for dims in inputs],
        [sized(dims) for dims in outputs or inputs],
    )


@pytest.mark.triton("L0_infer_reshape", cause="reshape")
def test_metadata_and_config_have_the_declared_shapes(server):
    metadata = server.metadata("reshape_ff4")
    assert [[*i.shape] for i in metadata.inputs] == [[-1, 4, 4], [-1, 2], [-1, 2, 2, 3], [-1, 1]]
    assert [[*o.shape] for o in metadata.outputs] == [[-1, 16], [-1, 1, 2], [-1, 3, 2, 2], [-1, 1]]
    config = server.config("reshape_ff4")
    assert [[*i.dims] for i in config.input] == [[4, 4], [2], [2, 2, 3], [1]]
    assert [[*i.reshape.shape] for i in config.input] == [[4, 2, 2], [1, 2, 1], [3, 2, 2], [1] * 3]


@pytest.mark.triton("L0_infer_reshape", cause="reshape")
def test_reshaped_requests_share_a_batch(server):
    kind, inputs, *_ = RESHAPES["ff2"]
    calls = []
    for start in range(20):
        values = {
            f"INPUT{i}": (kind, values_of(kind, [1, *dims], start)) for i, dims in enumerate(inputs)
        }
        calls.append((values, server.start("reshape_ff2", values)))
    for values, call in calls:
        contents = [np.frombuffer(c, "<f4") for c in call.result().raw_output_contents]
        assert [c.tolist() for c in contents] == [v.ravel().tolist() for _, v in values.values()]
