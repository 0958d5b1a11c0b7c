"""From torch to ONNX, with a proof that both give the same outputs."""
