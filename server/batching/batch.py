"""Many requests' arrays as one run's, and one run's as many requests'."""

from collections.abc import Sequence

import numpy as np

from neurona_server.batching.request import Inputs, Outputs, Request


class BatchError(Exception):
    """A model returned other rows than it was given."""


def join(requests: Sequence[Request]) -> Inputs:
    """The inputs of requests of one group, one below the other along axis 0."""
    first = requests[0].inputs
    if len(requests) == 1:
        return first
    return {name: np.concatenate([r.inputs[name] for r in requests]) for name in first}


def split(outputs: Outputs, requests: Sequence[Request]) -> list[Outputs]:
    """Each request's own rows of every output, in the order of the requests.

    Raises BatchError when an output's size along axis 0 is not that of the batch: handing
    its rows out would give somebody another one's answer.
    """
    rows = sum(request.rows for request in requests)
    for index, output in enumerate(outputs):
        if output.ndim == 0 or output.shape[0] != rows:
            raise BatchError(
                f"output {index} has shape {list(output.shape)} for a batch of {rows} rows"
            )
    if len(requests) == 1:
        return [outputs]
    parts: list[Outputs] = []
    start = 0
    for request in requests:
        stop = start + request.rows
        parts.append([output[start:stop] for output in outputs])
        start = stop
    return parts
