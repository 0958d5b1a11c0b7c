"""Model repositories laid out as those that Triton's own tests and examples use."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper

from support import onnx_models

Dims = Sequence[int]

_FLOATS = ("FP16", "FP32", "FP64", "BF16")


def config_type(datatype: str) -> str:
    """Return the name that config.pbtxt has for a datatype of the protocol."""
    return "TYPE_" + ("STRING" if datatype == "BYTES" else datatype)


def tensor_text(role: str, name: str, datatype: str, dims: Dims, more: str = "") -> str:
    """Return an input or output of config.pbtxt."""
    sizes = ", ".join(map(str, dims))
    return (
        f'{role} [ {{ name: "{name}" data_type: {config_type(datatype)} dims: [ {sizes} ] '
        f"{more} }} ]\n"
    )


def write_config(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.pbtxt").write_text(text)


def save_add_sub(
    path: Path,
    input_type: str = "INT32",
    output_types: tuple[str, str] = ("INT32", "INT32"),
    *,
    batched: bool = True,
    swap: bool = False,
    size: int | str = 16,
) -> Path:
    """Save OUTPUT0 = INPUT0 + INPUT1 and OUTPUT1 = INPUT0 - INPUT1; `swap` exchanges them.

    Strings hold integers. Inputs are of shape [batch, size], or [size] without a batch axis.
    """
    types = (input_type, *output_types)
    compute = TensorProto.FLOAT if any(t in _FLOATS for t in types) else TensorProto.INT32
    if input_type == "INT64" and set(types) == {"INT64"}:
        compute = TensorProto.INT64
    results = ("difference", "sum") if swap else ("sum", "difference")
    shape: list[int | str] = ["batch", size] if batched else [size]
    nodes: list[NodeProto] = [
        helper.make_node("Cast", ["INPUT0"], ["left"], to=compute),
        helper.make_node("Cast", ["INPUT1"], ["right"], to=compute),
        helper.make_node("Add", ["left", "right"], ["sum"]),
        helper.make_node("Sub", ["left", "right"], ["difference"]),
    ]
    nodes += [
        helper.make_node(
            "Cast", [result], [f"OUTPUT{index}"], to=onnx_models.ECHOED[output_types[index]]
        )
        for index, result in enumerate(results)
    ]
    kind = onnx_models.ECHOED[input_type]
    return onnx_models.save(
        path,
        nodes,
        {"INPUT0": (kind, shape), "INPUT1": (kind, shape)},
        {
            f"OUTPUT{index}": (onnx_models.ECHOED[output], shape)
            for index, output in enumerate(output_types)
        },
    )


def add_sub_config(
    input_type: str = "INT32",
    output_types: tuple[str, str] = ("INT32", "INT32"),
    *,
    max_batch_size: int = 8,
    size: int = 16,
    more: str = "",
    more_of_outputs: str = "",
) -> str:
    """Return the config.pbtxt of such a model."""
    text = f'platform: "onnxruntime_onnx"\nmax_batch_size: {max_batch_size}\n'
    for index in range(2):
        text += tensor_text("input", f"INPUT{index}", input_type, [size])
    for index, output in enumerate(output_types):
        text += tensor_text("output", f"OUTPUT{index}", output, [size], more_of_outputs)
    return text + more


def save_versions(
    folder: Path,
    *versions: int,
    more: str | None = "version_policy { specific { versions: [ 1, 3 ] } }",
) -> None:
    """Save versions of a model, of which those above 1 swap the outputs, and a config."""
    for version in versions:
        save_add_sub(folder / str(version) / "model.onnx", swap=version > 1)
    if more is not None:
        write_config(folder, add_sub_config(more=more))


def save_broken(folder: Path) -> None:
    """Save a version whose file is no model."""
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(b"no model")


def save_identities(
    path: Path, datatype: str, shapes: Sequence[Sequence[int | str]], *, optional: bool = False
) -> Path:
    """Save OUTPUTi = INPUTi, with an input of each of these shapes, batch axis included.

    With `optional`, the inputs have a default of one row of zeros.
    """
    kind = onnx_models.ECHOED[datatype]
    names = [f"INPUT{index}" for index in range(len(shapes))]
    outputs = [f"OUTPUT{index}" for index in range(len(shapes))]
    defaults = {name: np.zeros((1, 1), np.float32) for name in names} if optional else {}
    return onnx_models.save(
        path,
        [
            helper.make_node("Identity", [name], [output])
            for name, output in zip(names, outputs, strict=True)
        ],
        {name: (kind, shape) for name, shape in zip(names, shapes, strict=True)},
        {name: (kind, shape) for name, shape in zip(outputs, shapes, strict=True)},
        defaults,
    )


def identities_config(
    datatype: str,
    inputs: Sequence[Dims],
    *,
    outputs: Sequence[Dims] | None = None,
    reshapes: Mapping[int, Dims] | None = None,
    max_batch_size: int = 8,
    more: str = "",
) -> str:
    """Return the config.pbtxt of identities; `reshapes` are the shapes of the graph by index."""
    text = f'platform: "onnxruntime_onnx"\nmax_batch_size: {max_batch_size}\n'
    for role, all_dims in (("input", inputs), ("output", outputs or inputs)):
        for index, dims in enumerate(all_dims):
            reshape = ""
            if reshapes is not None and index in reshapes:
                sizes = ", ".join(map(str, reshapes[index]))
                reshape = f"reshape {{ shape: [ {sizes} ] }}"
            text += tensor_text(role, f"{role.upper()}{index}", datatype, dims, reshape)
    return text + more


def save_slow_identity(path: Path, products: int = 12) -> Path:
    """Save OUTPUT0 = INPUT0 of shape [batch, 1], whose runs take some tenths of a second."""
    nodes = [
        helper.make_node("ReduceSum", ["INPUT0"], ["first"], keepdims=0),
        helper.make_node("Mul", ["table", "first"], ["product0"]),
    ]
    nodes += [
        helper.make_node("MatMul", [f"product{i}", "table"], [f"product{i + 1}"])
        for i in range(products)
    ]
    nodes += [
        helper.make_node("ReduceMax", [f"product{products}"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "nothing"], ["added"]),
        helper.make_node("Add", ["INPUT0", "added"], ["OUTPUT0"]),
    ]
    kind = TensorProto.FLOAT
    return onnx_models.save(
        path,
        nodes,
        {"INPUT0": (kind, ["batch", 1])},
        {"OUTPUT0": (kind, ["batch", 1])},
        {"table": np.eye(900, dtype=np.float32), "nothing": np.zeros((), np.float32)},
    )
