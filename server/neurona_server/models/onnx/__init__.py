"""The only package that imports onnxruntime: model files, sessions, devices, caches."""
