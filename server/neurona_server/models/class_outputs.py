"""Recognises a classifier by its outputs: probabilities by class, beside the name of the class.

scikit-learn's exporters write the probabilities as a map by class, or as an array (zipmap=False),
as do those of XGBoost and LightGBM; then the graph says which names there are. Not all that looks
so is a classification: decision functions are no probabilities, several labels may hold at once,
and a support vector machine chooses otherwise than by the highest probability. So each is tested:
a row of scores must add up to 1, and its class be the one with the highest score. The file is
alone since a model may be loaded without it.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from neurona_protos.prediction_pb2 import DataType
from neurona_server.models.batching_check import Run
from neurona_server.models.onnx.class_labels import ClassLabels, read_class_labels
from neurona_server.models.signature import Signature, TensorSpec
from neurona_server.models.synthetic_inputs import FREE_SIZES, make_inputs

log = logging.getLogger(__name__)

ROWS = 16
"""Rows of each run of the test."""

_SEEDS = 2
_MORE_SEEDS = 6
"""Runs of the test, and others until two classes are seen, where nothing else shows the order."""

_SUM_TOLERANCE = 1e-2
"""How far the probabilities of a row may add up to another number than 1, as with float16."""

_LABELS = (DataType.DATA_TYPE_STRING, DataType.DATA_TYPE_INT64, DataType.DATA_TYPE_INT32)
_SCORES = (DataType.DATA_TYPE_FLOAT, DataType.DATA_TYPE_DOUBLE)


def find_scored_classes(
    path: Path,
    outputs: Sequence[TensorSpec],
    signature: Signature,
    run: Run,
    maps: Mapping[str, Sequence[str]],
    *,
    is_stated: bool,
) -> Mapping[str, Sequence[str]]:
    """Return the names of the classes by the output with their probabilities; {} for other models.

    Args:
        path: The model's file.
        outputs: The model's outputs, with the shapes of its runs.
        signature: Its inputs.
        run: Runs it.
        maps: The names by output, of those that are maps by class. They are taken where they
            cannot be tested.
        is_stated: Whether the file or its settings say what the model is for: then scores need not
            be probabilities.
    """
    labels = [i for i, one in enumerate(outputs) if one.dtype in _LABELS and len(one.shape) == 1]
    label = labels[0] if len(labels) == 1 else -1
    read = read_class_labels(path, outputs[label].name) if label >= 0 else ClassLabels()

    def test(names: Sequence[str], score: int, seed: int) -> set[str] | None:
        return _test(names, label, score, signature, run, seed, any_scores=is_stated)

    if maps:
        scores = [i for i, one in enumerate(outputs) if one.name in maps]
        if is_stated or len(scores) != 1 or not signature.batched:
            return maps
        names = maps[outputs[scores[0]].name]
        tests = [test(names, scores[0], seed) for seed in range(_SEEDS)]
        if not read.is_voted and all(one is None or one for one in tests):
            return maps
        reason = "a row does not add up to 1, or the highest probability is not that of the label"
        log.info("%s: no classification: %s", path.name, reason)
        return {}
    scores = [i for i, one in enumerate(outputs) if one.dtype in _SCORES and len(one.shape) == 2]
    is_candidate = len(outputs) == 2 and signature.batched and len(scores) == 1
    if not is_candidate or read.is_voted or not 1 < len(read.names) == len(set(read.names)):
        return {}
    classes_of_rows: set[str] = set()
    for seed in range(_SEEDS + _MORE_SEEDS):
        classes = test(read.names, scores[0], seed)
        if not classes:
            break
        classes_of_rows |= classes
        if seed + 1 >= _SEEDS and (len(classes_of_rows) > 1 or read.operator):
            return {outputs[scores[0]].name: read.names}
    return {}


def _test(
    names: Sequence[str],
    label: int,
    score: int,
    signature: Signature,
    run: Run,
    seed: int,
    *,
    any_scores: bool,
) -> set[str] | None:
    """Return the classes that some rows have.

    Empty if the scores are no probabilities, or the class (the output `label`, unless it is -1) of
    a row is not the one with the highest score; None if that cannot be tested.
    """
    try:
        results = run(make_inputs(signature.inputs, ROWS, FREE_SIZES[0], seed=seed))
    except Exception as error:  # of an input without a declared shape, or of the model
        log.debug("its classes cannot be tested: %s", error)
        return None
    values = np.asarray(results[score])
    if values.shape != (ROWS, len(names)) or not np.isfinite(values).all():
        return None
    sums = values.sum(axis=1)
    if not any_scores and (
        values.min() < -_SUM_TOLERANCE or np.abs(sums - 1).max() > _SUM_TOLERANCE
    ):
        return set()
    classes = [names[i] for i in values.argmax(axis=1)]
    if label >= 0 and [_text(one) for one in results[label]] != classes:
        return set()
    return set(classes)


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
