"""The way of a caller's request to a model and of the answer back, the same for every protocol.

A protocol says which model is asked for, how its message reads and how its answer is written.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Generic, NamedTuple, TypeVar

from neurona_protos.tensors import TensorError
from neurona_server.batching.policy import Priority
from neurona_server.batching.request import Inputs, Outputs, Request
from neurona_server.errors import (
    CancelledError,
    ExpiredError,
    InvalidError,
    ModelFailedError,
    NeuronaError,
    StoppingError,
)
from neurona_server.metrics import Metrics
from neurona_server.models.model import Model
from neurona_server.models.signature import Described
from neurona_server.rpc.limits import Limits

log = logging.getLogger(__name__)

CLOCKS_APART = 0.05
"""Seconds by which a caller may have seen a deadline pass before we do: ours began to count
when the request had reached us."""

Response = TypeVar("Response")
Track = Callable[[Request], None]
Defer = Callable[[Callable[[], None]], None]


class Asked(NamedTuple, Generic[Response]):
    """What a message asks of a model. `decode` is called once the described inputs are found
    to fit; `answer` writes what the caller gets. Neither may hold the message for longer."""

    described: Mapping[str, Described]
    decode: Callable[[], Inputs]
    answer: Callable[[Outputs], Response]
    deadline: float
    priority: Priority
    nbytes: int
    """Bytes of the message."""
    limits: Limits = Limits()


def submit(
    metrics: Metrics,
    resolve: Callable[[], Model],
    read: Callable[[Model], Asked[Response]],
    deliver: Callable[[Response | None, NeuronaError | None], None],
    track: Track,
    defer: Defer,
    swaps: int = 3,
) -> None:
    """Sends a request on its way; `deliver` gets its answer or its error, exactly once.

    `track` gets the request before it is submitted, so that it can be cancelled; `defer` is the
    call's. A model that another version replaces between its resolving and the submission is
    resolved anew, `swaps` times at the most. What `resolve`, `read`, `decode` and `answer` raise
    of NeuronaErrors is delivered.
    """
    started = time.monotonic()
    model = None
    try:
        model = resolve()
        asked = read(model)
        rows = model.signature.check(asked.described)
        asked.limits.check_rows(rows)
        inputs = asked.decode()
    except (TensorError, NeuronaError) as raised:
        error = InvalidError(str(raised)) if isinstance(raised, TensorError) else raised
        if model is None:
            metrics.unresolved[error.outcome].inc()
        else:
            model.metrics.ended(error.outcome, time.monotonic() - started)
        deliver(None, error)
        return

    chosen, answer = model, asked.answer  # not `asked`, which holds the message

    def done(request: Request, outputs: Outputs | None, error: NeuronaError | None) -> None:
        response = None
        if outputs is not None:
            try:
                response = answer(outputs)
            except NeuronaError as raised:
                error = raised
            except Exception:
                # Whatever is wrong with one answer, its caller hears of it.
                log.exception("%s: an answer cannot be written", chosen)
                error = ModelFailedError()
        outcome = "ok" if error is None else error.outcome
        chosen.metrics.ended(outcome, time.monotonic() - started)
        deliver(response, error)
        if outputs is not None and (shadow := chosen.shadow) is not None:
            shadow.send(request, outputs)

    group = model.signature.group(asked.described)
    request = Request(inputs, rows, group, done, asked.deadline, asked.priority, asked.nbytes)
    track(request)
    try:
        model.submit(request, defer)
    except NeuronaError as error:
        if not (isinstance(error, StoppingError) and swaps and _is_replaced(resolve, model)):
            request.fail(error)
        elif request.withdraw():
            submit(metrics, resolve, read, deliver, track, defer, swaps - 1)


def _is_replaced(resolve: Callable[[], Model], model: Model) -> bool:
    """Whether another version has taken its place since it was resolved."""
    try:
        return resolve() is not model
    except NeuronaError:
        return False


def cancel(request: Request) -> None:
    """Ends a request whose caller is gone, or whose deadline made it go."""
    if time.monotonic() >= request.deadline - CLOCKS_APART:
        request.cancel(ExpiredError("the deadline passed before the answer was there"))
    else:
        request.cancel(CancelledError("the caller cancelled the request"))
