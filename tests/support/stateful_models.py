"""Saves ONNX models whose state is among their tensors, as those of Triton's sequence examples.

Each has its config.pbtxt, with control inputs and implicit state in `sequence_batching`.
"""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from support import onnx_models, triton_models

STATE = 'state [ {{ input_name: "PAST" output_name: "NEXT" data_type: {0} dims: [ {1} ] {2} }} ]'
FLAG = 'control_input [ {{ name: "{0}" control [ {{ kind: CONTROL_SEQUENCE_{0} {1} }} ] }} ]'
INT32 = TensorProto.INT32


def flag(kind: str, values: str = "int32_false_true: [ 0, 1 ]") -> str:
    """Return a control input of config.pbtxt, named as its kind."""
    return FLAG.format(kind, values)


def state(data_type: str = "TYPE_INT32", dims: object = 1, more: str = "") -> str:
    """Return the implicit state of config.pbtxt: PAST becomes NEXT."""
    return STATE.format(data_type, dims, more)


def write_config(folder: Path, batching: str, *, max_batch_size: int = 8, more: str = "") -> None:
    """Write the config.pbtxt of a model of INPUT and OUTPUT, int32, whose state is hidden."""
    triton_models.write_config(
        folder,
        f'platform: "onnxruntime_onnx"\nmax_batch_size: {max_batch_size}\n'
        + triton_models.tensor_text("input", "INPUT", "INT32", [1])
        + triton_models.tensor_text("output", "OUTPUT", "INT32", [1])
        + f"sequence_batching {{ {batching} }}\n{more}",
    )


def save_accumulator(
    folder: Path,
    *,
    version: int = 1,
    scale: int = 1,
    max_batch_size: int = 8,
    batching: str = f"{flag('START')} {state()}",
    more: str = "",
) -> Path:
    """Save NEXT = OUTPUT = scale * INPUT + (0 if START else PAST), and return its folder."""
    shape = ["batch", 1] if max_batch_size else [1]
    onnx_models.save(
        folder / str(version) / "model.onnx",
        [
            helper.make_node("Cast", ["START"], ["starts"], to=TensorProto.BOOL),
            helper.make_node("Where", ["starts", "zero", "PAST"], ["before"]),
            helper.make_node("Mul", ["INPUT", "scale"], ["scaled"]),
            helper.make_node("Add", ["before", "scaled"], ["NEXT"]),
            helper.make_node("Identity", ["NEXT"], ["OUTPUT"]),
        ],
        dict.fromkeys(("INPUT", "START", "PAST"), (INT32, shape)),
        dict.fromkeys(("OUTPUT", "NEXT"), (INT32, shape)),
        {"zero": np.zeros(1, np.int32), "scale": np.array([scale], np.int32)},
    )
    write_config(folder, batching, max_batch_size=max_batch_size, more=more)
    return folder


def save_simple_sequence(folder: Path) -> None:
    """Save OUTPUT = INPUT + START, as simple_sequence of Triton's examples."""
    shape = ["batch", 1]
    onnx_models.save(
        folder / "1" / "model.onnx",
        [
            helper.make_node("Add", ["INPUT", "START"], ["sum"]),
            helper.make_node("Mul", ["sum", "READY"], ["OUTPUT"]),
        ],
        dict.fromkeys(("INPUT", "START", "READY"), (INT32, shape)),
        {"OUTPUT": (INT32, shape)},
    )
    write_config(
        folder,
        f"max_sequence_idle_microseconds: 5000000 direct {{ }} {flag('START')} {flag('READY')}",
    )


def save_simple_dyna_sequence(folder: Path) -> None:
    """Save OUTPUT = INPUT + START + (CORRID if END), as simple_dyna_sequence of the examples."""
    shape = ["batch", 1]
    onnx_models.save(
        folder / "1" / "model.onnx",
        [
            helper.make_node("Cast", ["CORRID"], ["id"], to=INT32),
            helper.make_node("Mul", ["END", "id"], ["at_end"]),
            helper.make_node("Add", ["INPUT", "START"], ["sum"]),
            helper.make_node("Add", ["sum", "at_end"], ["OUTPUT"]),
        ],
        {
            **dict.fromkeys(("INPUT", "START", "END"), (INT32, shape)),
            "CORRID": (TensorProto.UINT64, shape),
        },
        {"OUTPUT": (INT32, shape)},
    )
    corrid = flag("CORRID", "data_type: TYPE_UINT64")
    write_config(folder, f"oldest {{ }} {flag('START')} {flag('END')} {corrid}")


def save_simple_string_dyna_sequence(folder: Path) -> None:
    """Save the sum of a sequence's INPUT, + CORRID, a string, if END: as the example has it."""
    shape = ["batch", 1]
    onnx_models.save(
        folder / "1" / "model.onnx",
        [
            helper.make_node("Cast", ["CORRID"], ["id"], to=INT32),
            helper.make_node("Mul", ["END", "id"], ["at_end"]),
            helper.make_node("Add", ["INPUT", "PAST"], ["NEXT"]),
            helper.make_node("Add", ["NEXT", "at_end"], ["OUTPUT"]),
        ],
        {
            **dict.fromkeys(("INPUT", "PAST", "END"), (INT32, shape)),
            "CORRID": (TensorProto.STRING, shape),
        },
        dict.fromkeys(("OUTPUT", "NEXT"), (INT32, shape)),
    )
    zeros = 'initial_state { data_type: TYPE_INT32 dims: [ 1 ] zero_data: true name: "zeros" }'
    corrid = flag("CORRID", "data_type: TYPE_STRING")
    write_config(folder, f"oldest {{ }} {flag('END')} {corrid} {state(more=zeros)}")


def save_gru(folder: Path, *, batched: bool, seed: int = 0) -> None:
    """Save a GRU over INPUT, float (rows, time, 3), which takes PAST and gives NEXT.

    OUTPUT is the state after each step, (rows, time, 4). `batched`: the state has shape (rows, 4),
    otherwise (1, 1, 4), as the operator has it, and there is one row.
    """
    random = np.random.default_rng(seed)
    kind, rows = TensorProto.FLOAT, "batch" if batched else 1
    shape = [rows, 4] if batched else [1, rows, 4]
    nodes = [
        helper.make_node("Transpose", ["INPUT"], ["steps"], perm=[1, 0, 2]),
        helper.make_node(
            "Unsqueeze" if batched else "Identity", ["PAST", "zero"][: 1 + batched], ["h"]
        ),
        helper.make_node("GRU", ["steps", "W", "R", "", "", "h"], ["Y", "Y_h"], hidden_size=4),
        helper.make_node("Squeeze", ["Y", "one"], ["states"]),
        helper.make_node("Transpose", ["states"], ["OUTPUT"], perm=[1, 0, 2]),
        helper.make_node(
            "Squeeze" if batched else "Identity", ["Y_h", "zero"][: 1 + batched], ["NEXT"]
        ),
    ]
    onnx_models.save(
        folder / "1" / "model.onnx",
        nodes,
        {"INPUT": (kind, [rows, "time", 3]), "PAST": (kind, shape)},
        {"OUTPUT": (kind, [rows, "time", 4]), "NEXT": (kind, shape)},
        {
            "W": random.standard_normal((1, 12, 3)).astype(np.float32),
            "R": random.standard_normal((1, 12, 4)).astype(np.float32),
            "zero": np.array([0]),
            "one": np.array([1]),
        },
    )
    first = "" if batched else "1, "
    dims = "4" if batched else "1, 1, 4"
    triton_models.write_config(
        folder,
        f"max_batch_size: {8 if batched else 0}\n"
        f'input [ {{ name: "INPUT" data_type: TYPE_FP32 dims: [ {first}-1, 3 ] }} ]\n'
        f'output [ {{ name: "OUTPUT" data_type: TYPE_FP32 dims: [ {first}-1, 4 ] }} ]\n'
        f"sequence_batching {{ {state('TYPE_FP32', dims)} }}\n",
    )
