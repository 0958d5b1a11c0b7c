"""Recognises a classifier by two outputs: the name of the class, and a score for each class.

scikit-learn's exporters write such models without a map by class (zipmap=False), and so do those of
XGBoost and LightGBM. The graph says which names there are; whether they are in the order of the
scores is tested: in each row, the class must be the one with the highest score. The file is alone
since a model may be loaded without it.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from neurona_protos.prediction_pb2 import DataType
from neurona_server.models.batching_check import Run
from neurona_server.models.onnx.class_labels import read_class_labels
from neurona_server.models.signature import Signature, TensorSpec
from neurona_server.models.synthetic_inputs import FREE_SIZES, make_inputs

log = logging.getLogger(__name__)

ROWS = 16
"""Rows of each run of the test."""

_LABELS = (DataType.DATA_TYPE_STRING, DataType.DATA_TYPE_INT64, DataType.DATA_TYPE_INT32)
_SCORES = (DataType.DATA_TYPE_FLOAT, DataType.DATA_TYPE_DOUBLE)


def find_scored_classes(
    path: Path, outputs: Sequence[TensorSpec], signature: Signature, run: Run
) -> Mapping[str, Sequence[str]]:
    """Return the names of the classes by the output with their scores; {} for other models.

    Args:
        path: The model's file.
        outputs: The model's outputs, with the shapes of its runs.
        signature: Its inputs.
        run: Runs it.
    """
    if len(outputs) != 2 or not signature.batched:
        return {}
    labels = [i for i, one in enumerate(outputs) if one.dtype in _LABELS and len(one.shape) == 1]
    scores = [i for i, one in enumerate(outputs) if one.dtype in _SCORES and len(one.shape) == 2]
    if len(labels) != 1 or len(scores) != 1:
        return {}
    classes = read_class_labels(path, outputs[labels[0]].name)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        return {}
    if any(
        not _is_highest_score(classes, labels[0], scores[0], signature, run, seed)
        for seed in range(2)
    ):
        return {}
    return {outputs[scores[0]].name: classes}


def _is_highest_score(
    classes: Sequence[str], label: int, score: int, signature: Signature, run: Run, seed: int
) -> bool:
    """Return whether in each row the class is the one with the highest score."""
    try:
        results = run(make_inputs(signature.inputs, ROWS, FREE_SIZES[0], seed=seed))
    except Exception as error:  # of an input without a declared shape, or of the model
        log.debug("its classes cannot be tested: %s", error)
        return False
    values = np.asarray(results[score])
    if values.shape != (ROWS, len(classes)) or not np.isfinite(values).all():
        return False
    return [_text(one) for one in results[label]] == [classes[i] for i in values.argmax(axis=1)]


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
