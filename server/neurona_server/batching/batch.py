"""Many requests' arrays as one run's, and one run's as many requests'."""

from collections.abc import Hashable, Sequence
from typing import Any, overload

import numpy as np

from neurona_server.batching.request import Array, Inputs, Outputs, Request, not_by_rows


class BatchError(Exception):
    """A model returned other rows than it was given."""


class Ran:
    """The outputs of one run. Whoever writes answers keeps in `memo` what all of them need."""

    __slots__ = ("memo", "outputs")

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self.memo: dict[Hashable, Any] = {}


class Part(Sequence[Array]):
    """One request's rows of a run's outputs, cut out when they are asked for."""

    __slots__ = ("batch", "rows", "start", "stop")

    def __init__(self, batch: Ran, start: int, rows: int) -> None:
        self.batch = batch
        self.start = start
        self.rows = rows
        self.stop = start + rows

    def __len__(self) -> int:
        return len(self.batch.outputs)

    @overload
    def __getitem__(self, index: int) -> Array: ...
    @overload
    def __getitem__(self, index: slice) -> list[Array]: ...
    def __getitem__(self, index: int | slice) -> Array | list[Array]:
        if isinstance(index, slice):
            return [output[self.start : self.stop] for output in self.batch.outputs[index]]
        output: Array = self.batch.outputs[index][self.start : self.stop]
        return output


def join(requests: Sequence[Request], rows: int = 0) -> Inputs:
    """The inputs of requests of one group, one below the other along axis 0.

    Padded to `rows` with copies of the last row: one that the model can take for certain.
    """
    first = requests[0].inputs
    padding = rows - sum([request.rows for request in requests])
    if len(requests) == 1 and padding <= 0:
        # A view on a message starts where the message has it; a runtime may want better.
        return {name: one if one.flags.aligned else one.copy() for name, one in first.items()}
    joined: dict[str, Array] = {}
    whole = not_by_rows(requests[0].group)
    for name in first:
        if name in whole:
            joined[name] = first[name]
            continue
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
    ran = Ran(outputs)
    parts: list[Outputs] = []
    start = 0
    for request in requests:
        parts.append(Part(ran, start, request.rows))
        start += request.rows
    return parts
