"""Inputs of strings: torch has none, so the graph looks up their codes itself."""

from collections.abc import Sequence

import onnx

from neurona_training.data import Input

_DOMAIN, _VERSION = "ai.onnx.ml", 4  # LabelEncoder as such, of ONNX's classic machine learning


def take_strings(model: onnx.ModelProto, inputs: Sequence[Input]) -> None:
    """Puts a look-up before each input with categories, in place.

    What was an int64 input of codes takes strings of the same shape; a string that is none
    of the categories gets the code after the last of them.
    """
    for given in inputs:
        if not given.categories:
            continue
        (taken,) = [one for one in model.graph.input if one.name == given.name]
        codes = f"{given.name}_codes"
        for node in model.graph.node:
            node.input[:] = [codes if name == given.name else name for name in node.input]
        look_up = onnx.helper.make_node(
            "LabelEncoder",
            [given.name],
            [codes],
            domain=_DOMAIN,
            keys_strings=list(given.categories),
            values_int64s=range(len(given.categories)),
            default_int64=len(given.categories),
        )
        model.graph.node.insert(0, look_up)
        taken.type.tensor_type.elem_type = onnx.TensorProto.STRING
    if any(given.categories for given in inputs) and not any(
        known.domain == _DOMAIN for known in model.opset_import
    ):
        model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, _VERSION))
