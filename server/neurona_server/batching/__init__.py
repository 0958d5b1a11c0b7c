"""How requests become batches: numpy only, no gRPC and no ONNX Runtime."""
