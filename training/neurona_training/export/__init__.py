"""From a trained network to files that are verified on ONNX Runtime.

    from neurona_training.export import export, verify

module_export         any torch module -> model.onnx: `export`
module_call, free_axes, module_proof, recurrent_operators     its parts
onnx_export           a recipe's network -> model.onnx, with metadata and string inputs
parity                verifies that the graph gives the same outputs as the network
reference_check       a file against a torch program or reference outputs: `verify`
references, fault_diagnosis                                   its parts
graph_check, check_inputs, tensor_comparison     a graph compared with a reference, case by case
stepwise              step.onnx: a recurrent network with its state as input and output
quantization          smaller variants: float16 and int8
metadata              what a model file says about itself
files                 files replaced in one step
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neurona_training.export.module_export import ExportReport as ExportReport
    from neurona_training.export.module_export import export as export
    from neurona_training.export.reference_check import Verification as Verification
    from neurona_training.export.reference_check import verify as verify

_PUBLIC = {
    "export": "module_export",
    "ExportReport": "module_export",
    "verify": "reference_check",
    "Verification": "reference_check",
}


def __getattr__(name: str) -> object:
    """Imports what is public when it is used: torch takes seconds."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
