"""Retries: a call is sent again, to another server if there is one, until its attempts are used."""

import random
from collections.abc import Callable, Iterator

from neurona_client.calls.steps import (
    Call,
    Deadline,
    Operation,
    Pause,
    Step,
    UnaryCall,
    WaitForEndpoint,
)
from neurona_client.errors import (
    ClosedError,
    DeadlineExceededError,
    NeuronaError,
    OverloadedError,
    UnavailableError,
    UnreachableError,
    explain_connect_error,
)
from neurona_client.options import Retries
from neurona_client.transport.endpoint import Endpoint
from neurona_client.transport.endpoint_pool import EndpointPool
from neurona_client.transport.grpc_calls import GENERIC_DEADLINE_MESSAGES

_DIAGNOSIS_TIMEOUT_SECONDS = 1.0
"""For the call that finds out why no server is reachable."""

StepFactory = Callable[[Endpoint, float | None], Step]
"""Creates the step that sends the request to a server, given the remaining seconds."""

Sender = Callable[[EndpointPool, Endpoint, Deadline, StepFactory], Call]
"""Sends the request to a server, and perhaps to a second one."""


def with_retries(
    pool: EndpointPool,
    retries: Retries,
    deadline: Deadline,
    make_step: StepFactory,
    first_error: NeuronaError | None = None,
    send: Sender | None = None,
) -> Call:
    """Send a request until there is a response, or an error that a retry does not fix.

    Args:
        pool: the servers.
        retries: how often, and with which pauses.
        deadline: of the whole operation.
        make_step: creates the step of each attempt.
        first_error: outcome of a first attempt that was made before.
        send: performs each attempt; None: one step.

    Raises:
        NeuronaError: the error of the last attempt.
    """
    backoffs = backoff_times(retries)
    last_endpoint: Endpoint | None = None
    for attempt in range(1, retries.max_attempts + 1):
        try:
            if attempt == 1 and first_error is not None:
                raise first_error
            last_endpoint = pool.pick(last_endpoint)
            if last_endpoint is None:
                last_endpoint = yield from wait_for_endpoint(pool, retries, deadline)
            if send is not None:
                return (yield from send(pool, last_endpoint, deadline, make_step))
            return (yield make_step(last_endpoint, deadline.remaining()))
        except DeadlineExceededError as error:
            if str(error) in GENERIC_DEADLINE_MESSAGES:
                raise deadline.exceeded_error() from None
            raise  # the message of the server says more
        except (OverloadedError, UnavailableError) as error:
            if pool.closed_reason:
                raise ClosedError(pool.closed_reason) from None
            pause = pause_before_retry(error, next(backoffs), pool)
            is_final = attempt == retries.max_attempts or isinstance(error, UnreachableError)
            if is_final or pause is None:
                raise
            remaining = deadline.remaining()
            if remaining is not None and pause >= remaining:
                raise
        if pause:
            yield Pause(pause)
    raise AssertionError("max_attempts is at least 1")


def wait_for_endpoint(
    pool: EndpointPool, retries: Retries, deadline: Deadline
) -> Operation[Endpoint]:
    """Wait until a server is reachable and return it.

    Raises:
        UnreachableError: none was for `retries.unreachable_timeout` seconds.
        DeadlineExceededError: none was before the deadline.
    """
    give_up = Deadline(retries.unreachable_timeout)
    while True:
        try:
            remaining = deadline.remaining()
        except DeadlineExceededError:
            text = _unreachable_text(pool, deadline.timeout)
            raise DeadlineExceededError(f"deadline exceeded: {text}") from None
        try:
            timeout = give_up.remaining() or 0.0
        except DeadlineExceededError:
            raise (yield from _diagnose_unreachable(pool, retries, deadline)) from None
        yield WaitForEndpoint(pool, timeout if remaining is None else min(remaining, timeout))
        if (endpoint := pool.pick()) is not None:
            return endpoint


def _diagnose_unreachable(
    pool: EndpointPool, retries: Retries, deadline: Deadline
) -> Operation[UnreachableError]:
    """Call the first server, although it seems unreachable: gRPC's error has the reason."""
    remaining = deadline.remaining()
    timeout = (
        _DIAGNOSIS_TIMEOUT_SECONDS
        if remaining is None
        else min(remaining, _DIAGNOSIS_TIMEOUT_SECONDS)
    )
    endpoint = pool.endpoints[0]
    try:
        yield UnaryCall(endpoint, "/grpc.health.v1.Health/Check", b"", timeout, ())
    except NeuronaError as error:
        if isinstance(error, UnavailableError):
            endpoint.connect_error = explain_connect_error(str(error), uses_tls=endpoint.uses_tls)
    return UnreachableError(_unreachable_text(pool, retries.unreachable_timeout))


def _unreachable_text(pool: EndpointPool, timeout: float | None) -> str:
    return f"no server reachable at {pool.address} within {timeout:g} s: {pool.connect_error}"


def pause_before_retry(
    error: OverloadedError | UnavailableError, backoff: float, pool: EndpointPool
) -> float | None:
    """Return the seconds before the next attempt; None: a retry does not help."""
    if isinstance(error, OverloadedError):
        if error.retry_after is None:
            return None
        return error.retry_after * random.uniform(1.0, 1.5)  # noqa: S311
    return 0.0 if pool.has_healthy_endpoint() else backoff


def backoff_times(retries: Retries) -> Iterator[float]:
    """Yield the seconds before each further attempt."""
    backoff = retries.initial_backoff
    while True:
        yield backoff * random.uniform(0.5, 1.0)  # noqa: S311
        backoff = min(2 * backoff, retries.max_backoff)
