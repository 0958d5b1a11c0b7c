"""From a model's output rows to the bytes of an answer."""

from collections.abc import Sequence

import numpy as np

from neurona_protos.prediction_pb2 import (
    Classification,
    ClassificationRow,
    PredictResponse,
    Regression,
    RegressionRow,
    Task,
    ValueDescription,
)
from neurona_protos.tensors import Array, to_tensor
from neurona_server.batching.request import Outputs
from neurona_server.models.model import Model


def answer(model: Model, outputs: Outputs, top_k: int, *, raw_outputs: bool) -> PredictResponse:
    """One request's answer. A PredictResponse is at the same time, field for field, a
    ClassifyResponse or a RegressResponse."""
    response = PredictResponse(model=model.name, version=model.version)
    task = model.metadata.task
    if task == Task.TASK_CLASSIFICATION:
        probabilities = outputs[model.answer]
        if model.softmax:
            probabilities = softmax(probabilities)
        response.classification.CopyFrom(classify(probabilities, model.metadata.labels, top_k))
    elif task == Task.TASK_REGRESSION:
        response.regression.CopyFrom(regress(outputs[model.answer], model.metadata.values))
    if raw_outputs or task == Task.TASK_TENSORS:
        specs = model.signature.outputs
        response.outputs.extend(
            to_tensor(spec.name, np.asarray(array), spec.dtype)
            for spec, array in zip(specs, outputs, strict=True)
        )
    return response


def softmax(logits: Array) -> Array:
    """The probabilities of each row of (rows, classes), in float32 or better.

    A row that has infinity or what is not a number has probabilities that are not numbers.
    """
    logits = logits.astype(np.promote_types(logits.dtype, np.float32), copy=False)
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))  # none above 1
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def classify(probabilities: Array, labels: Sequence[str], top_k: int) -> Classification:
    """The `top_k` best classes of each row of (rows, classes); of equals, the first comes first,
    and what is not a number comes last.

    More classes than there are is all of them. A class without a label is called by its index.
    """
    ranked = probabilities
    if np.isnan(probabilities).any():
        ranked = np.where(np.isnan(probabilities), -np.inf, probabilities)
    if top_k == 1:
        indices = ranked.argmax(axis=1)[:, np.newaxis]
    else:
        indices = np.argsort(-ranked, axis=1, kind="stable")[:, :top_k]
    best = np.take_along_axis(probabilities, indices, axis=1)
    return Classification(
        rows=[
            ClassificationRow(
                labels=[labels[i] if i < len(labels) else str(i) for i in row],
                indices=row,
                probabilities=row_probabilities,
            )
            for row, row_probabilities in zip(indices.tolist(), best.tolist(), strict=True)
        ]
    )


def regress(values: Array, described: Sequence[ValueDescription]) -> Regression:
    """The values of each row of (rows, values) or (rows,)."""
    if values.ndim == 1:
        values = values[:, np.newaxis]
    return Regression(values=described, rows=[RegressionRow(values=row) for row in values.tolist()])
