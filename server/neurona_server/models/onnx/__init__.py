"""ONNX Runtime: model files, sessions, devices, caches. The only package that imports it.

The file is alone because it is the package's; it ends the import where ONNX Runtime is in pieces.
"""

import onnxruntime

if not hasattr(onnxruntime, "InferenceSession"):
    # Two packages have the same files: uninstalling one takes them from the other.
    raise ImportError(
        "its files are incomplete, as after one of two ONNX Runtime packages was uninstalled "
        "(expected one package: pip install --force-reinstall --no-deps onnxruntime-gpu, or "
        "onnxruntime)",
        name="onnxruntime",
    )
