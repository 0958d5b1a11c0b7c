"""L0_infer's class_* and mix_* cases, and labels: the classification extension."""

import numpy as np
import pytest
from support import triton_models
from support.triton_calls import expect_error, values_of

pytestmark = pytest.mark.triton("L0_infer classes", cause="labels")
TYPES = {
    "bbb": ("INT8", ("INT8", "INT8")),
    "sss": ("INT16", ("INT16", "INT16")),
    "iii": ("INT32", ("INT32", "INT32")),
    "lll": ("INT64", ("INT64", "INT64")),
    "fff": ("FP32", ("FP32", "FP32")),
    "iff": ("INT32", ("FP32", "FP32")),
}
LABELS = [f"label{i}" for i in range(16)]


def save(root, name, types, *, rows=8, labels=LABELS, files=("OUTPUT0",)):
    folder = root / name
    triton_models.save_add_sub(folder / "1" / "model.onnx", *types, batched=rows > 0)
    folder.joinpath("labels.txt").write_text("".join(f"{label}\n" for label in labels))
    config = triton_models.add_sub_config(*types, max_batch_size=rows)
    for output in files:
        config = config.replace(
            f'name: "{output}"', f'name: "{output}" label_filename: "labels.txt"'
        )
    triton_models.write_config(folder, config)


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    for name, types in TYPES.items():
        save(root, name, types)
        save(root, f"{name}_nobatch", types, rows=0)
    save(root, "both", TYPES["fff"], files=("OUTPUT0", "OUTPUT1"))
    save(root, "few", TYPES["fff"], labels=LABELS[:3])
    save(root, "no_labels", TYPES["fff"], labels=[])
    save(root, "no_file", TYPES["fff"], files=())
    save(root, "strings", ("INT32", ("BYTES", "INT32")))
    return serve(root, "--threads", "1").triton


def ask(server, model, kind, shape, **classes):
    left = values_of(kind, shape, 3)
    right = values_of(kind, shape)[..., ::-1].copy() // 2
    inputs = {"INPUT0": (kind, left), "INPUT1": (kind, right)}
    response = server.infer(model, inputs, outputs=["OUTPUT0", "OUTPUT1"], classes=classes)
    sums, differences = left.astype(float) + right, left.astype(float) - right
    return response, {"OUTPUT0": sums, "OUTPUT1": differences}


def check(texts, values, count, labels):
    """Check the strings of one row."""
    order = np.argsort(-values, kind="stable")[:count]
    assert len(texts) == count
    for text, index in zip(texts, order, strict=True):
        value, position, *label = text.decode().split(":")
        assert float(value) == values[index]
        assert int(position) == index
        assert label == ([labels[index]] if index < len(labels) else [])


@pytest.mark.parametrize("name", TYPES)
def test_class(server, name):
    kind, _ = TYPES[name]
    for rows in (1, 8):
        response, values = ask(server, name, kind, (rows, 16), OUTPUT0=3, OUTPUT1=3)
        for row in range(rows):
            check(response.arrays["OUTPUT0"][row], values["OUTPUT0"][row], 3, LABELS)
            check(response.arrays["OUTPUT1"][row], values["OUTPUT1"][row], 3, [])
        assert {o.datatype for o in response.message.outputs} == {"BYTES"}
    response, values = ask(server, f"{name}_nobatch", kind, (16,), OUTPUT0=3)
    check(response.arrays["OUTPUT0"], values["OUTPUT0"], 3, LABELS)


@pytest.mark.parametrize("name", TYPES)
def test_mix(server, name):
    kind, _ = TYPES[name]
    response, values = ask(server, name, kind, (8, 16), OUTPUT1=16)
    assert (response.arrays["OUTPUT0"] == values["OUTPUT0"]).all()
    for row in range(8):
        check(response.arrays["OUTPUT1"][row], values["OUTPUT1"][row], 16, [])


def test_labels_of_both_outputs(server):
    response, values = ask(server, "both", "FP32", (2, 16), OUTPUT0=2, OUTPUT1=2)
    for output in ("OUTPUT0", "OUTPUT1"):
        for row in range(2):
            check(response.arrays[output][row], values[output][row], 2, LABELS)


@pytest.mark.parametrize(("name", "count"), [("few", 3), ("no_labels", 0), ("no_file", 0)])
def test_fewer_labels_than_classes(server, name, count):
    response, values = ask(server, name, "FP32", (2, 16), OUTPUT0=16)
    for row in range(2):
        check(response.arrays["OUTPUT0"][row], values["OUTPUT0"][row], 16, LABELS[:count])


def test_more_classes_than_there_are(server):
    response, values = ask(server, "fff", "FP32", (1, 16), OUTPUT0=100)
    check(response.arrays["OUTPUT0"][0], values["OUTPUT0"][0], 16, LABELS)


@pytest.mark.triton("L0_infer classes", declared="classification")
def test_digits_of_the_value(server):
    values = np.full((1, 16), 1 / 3, np.float32)
    response = server.infer(
        "fff",
        {f"INPUT{i}": ("FP32", values) for i in range(2)},
        classes={"OUTPUT0": 1},
    )
    assert response.arrays["OUTPUT0"][0, 0] == b"0.6666667:0:label0"  # Triton: 0.666667


def test_classes_of_strings(server):
    expect_error(
        lambda: ask(server, "strings", "INT32", (1, 16), OUTPUT0=2),
        "INVALID_ARGUMENT",
        "class result not available for output due to unsupported type 'BYTES'",
    )
