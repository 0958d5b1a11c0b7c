"""Many requests' arrays as one run's, and one run's as many requests'."""

from collections.abc import Sequence

import numpy as np

from neurona_server.batching.request import Array, Inputs, Outputs, Request


class BatchError(Exception):
    """A model returned other rows than it was given."""


def join(requests: Sequence[Request], rows: int = 0) -> Inputs:
    """The inputs of requests of one group, one below the other along axis 0.

    Padded to `rows` with copies of the last row: one that the model can take for certain.
    """
    first = requests[0].inputs
    padding = rows - sum([request.rows for request in requests])
    if len(requests) == 1 and padding <= 0:
        return first
    joined: dict[str, Array] = {}
    for name in first:
        parts = [request.inputs[name] for request in requests]
        if padding > 0:
            parts.append(np.repeat(parts[-1][-1:], padding, axis=0))
        joined[name] = np.concatenate(parts)
    return joined


def split(outputs: Outputs, requests: Sequence[Request], rows: int = 0) -> list[Outputs]:
    """Each request's own rows of every output, in the order of the requests.

    `rows` is what the batch was padded to. Raises BatchError when an output's size along
    axis 0 is not that of the batch: handing its rows out would give somebody another one's
    answer.
    """
    own = sum([request.rows for request in requests])
    expected = max(rows, own)
    for index, output in enumerate(outputs):
        if output.ndim == 0 or output.shape[0] != expected:
            raise BatchError(
                f"output {index} has shape {list(output.shape)} for a batch of {expected} rows"
            )
    if len(requests) == 1 and expected == own:
        return [outputs]
    parts: list[Outputs] = []
    start = 0
    for request in requests:
        stop = start + request.rows
        parts.append([output[start:stop] for output in outputs])
        start = stop
    return parts
