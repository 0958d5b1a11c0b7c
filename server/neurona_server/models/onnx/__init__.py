"""ONNX Runtime: model files, sessions, devices, caches. The only package that imports it."""
