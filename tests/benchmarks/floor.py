"""The floor: ONNX Runtime alone, in this process, on batches that lie ready."""

import time

import onnxruntime
from models import Model


def rows_a_second(model: Model, rows: int, seconds: float) -> float:
    """With ONNX Runtime's own defaults, for at least `seconds` and two runs after a warm-up."""
    session = onnxruntime.InferenceSession(model.file, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: model.batch(rows)}
    session.run(None, feeds)
    runs, begun = 0, time.perf_counter()
    while runs < 2 or time.perf_counter() - begun < seconds:
        session.run(None, feeds)
        runs += 1
    return runs * rows / (time.perf_counter() - begun)
