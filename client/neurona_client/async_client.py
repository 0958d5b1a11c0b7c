"""AsyncClient: predictions for coroutines."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from neurona_client.base_client import CLASSIFY, PREDICT, REGRESS, BaseClient
from neurona_client.calls.async_driver import LoopDriver
from neurona_client.descriptions import ModelDescription, ServedModel
from neurona_client.inputs import Inputs
from neurona_client.options import (
    DEFAULT_RETRIES,
    DEFAULT_TARGET,
    MAX_PENDING_BYTES,
    MAX_PENDING_REQUESTS,
    Retries,
    Tls,
    validated_options,
)
from neurona_client.request_templates import RequestOptions
from neurona_client.results import ClassificationResult, Prediction, RegressionResult
from neurona_client.sessions import AsyncSession


class AsyncClient:
    """Predictions from one server or several, for the coroutines of one event loop.

        async with AsyncClient("127.0.0.1:8001") as client:
            results = await asyncio.gather(*(client.predict("lenet5", one) for one in images))

    The methods and their arguments are those of `Client`. A client belongs to the event loop of its
    first call. A coroutine that is cancelled gives its call up.
    """

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        coalesce: bool = True,
        timeout: float | None = None,
        token: str | None = None,
        tls: Tls | bool | None = None,
        compression: bool = False,
        retries: Retries = DEFAULT_RETRIES,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        max_pending_requests: int = MAX_PENDING_REQUESTS,
        max_message_bytes: int = 64 << 20,
        token_in_plaintext: bool = False,
    ) -> None:
        """Open connections in the background; the arguments are those of `Client`.

        Args:
            target: HOST:PORT, unix:PATH, dns:///NAME:PORT (all addresses of the name, resolved
                again every ten seconds), or several of these.
            coalesce: share a stream; False: each call is a gRPC call of its own.
            timeout: seconds for calls that specify none; None: no limit.
            token: bearer token, sent with each call. Rejected without TLS to other machines, unless
                `token_in_plaintext` is set.
            tls: True for servers whose certificate gRPC trusts by default, else a `Tls`.
            compression: compress requests with gzip.
            retries: how often a call is attempted, and hedging; see `Retries`.
            max_pending_bytes: limit of the inputs in flight, in bytes. Calls beyond it wait, so
                that memory stays bounded.
            max_pending_requests: limit of the requests in flight. Calls beyond it wait.
            max_message_bytes: largest message that is sent or received.
            token_in_plaintext: the network is safe: the token may be sent without TLS.

        Raises:
            ValueError: an option is outside its range.
            OSError: a file of `tls` cannot be read.
            RuntimeError: eventlet has replaced the threads of this process.
        """
        self._driver = LoopDriver()
        self._base = BaseClient(
            validated_options(
                target,
                coalesce=coalesce,
                timeout=timeout,
                token=token,
                tls=tls,
                compression=compression,
                retries=retries,
                max_pending_bytes=max_pending_bytes,
                max_pending_requests=max_pending_requests,
                max_message_bytes=max_message_bytes,
                token_in_plaintext=token_in_plaintext,
            ),
            self._driver.deliver,
            self._driver.yield_then,
        )

    async def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int | None = None,
        label: str | None = None,
        top_k: int = 1,
        raw_outputs: bool = False,
        priority: str = "normal",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Prediction:
        """Predict with any model; the result depends on the model's task.

            result = await client.predict("lenet5", np.zeros((2, 8, 8)), top_k=3)
            print(result[0].label, result[0].probability)

        Args:
            model: name of the model.
            inputs: an array, a number or nested lists; of a model with several inputs, a dict of
                them by name. One sample, or a batch with the batch axis first. For an image model
                also the content of an image file (bytes) or its Path. Values are converted to the
                dtype of the input if it can hold them.
            version: number of the version; None: the server's choice.
            label: name that points to a version, such as "latest", instead of its number.
            top_k: how many classes a classification returns, most probable first.
            raw_outputs: return the model's output tensors as well.
            priority: "high", "normal" or "low", among the requests in the queue of the model.
            timeout: seconds from now to the response; None: the client's own timeout.
            request_id: what the server's log calls the request, printable ASCII. Such a call is a
                gRPC call of its own.

        Returns:
            A sequence with one item for each row. Of one row, a classification has `label`,
            `probability` and `top`, a regression `value`, `unit`, `values` and `units`; a model
            without a task has `outputs`.

        Raises:
            InvalidInputError: an input's name, dtype, shape or value does not fit the model.
            NotFoundError: there is no such model, version or label.
            DeadlineExceededError: there was no response within the timeout.
            OverloadedError: the queue of the model is full, after all attempts.
            UnavailableError: no server answered, after all attempts.
            NeuronaError: any other failure; see `neurona_client.errors`.
        """
        options = (model, version, label, top_k, raw_outputs, priority)
        base, deadline, first_error = self._base, self._base.deadline(timeout), None
        prepared = base.fast_path(options, inputs, request_id)
        if prepared is not None:  # a request like one before, sent without an operation
            template, request, stream = prepared
            outcome = await self._driver.send_streamed(
                base.capacity, stream, request.message, deadline
            )
            if isinstance(outcome, bytes):
                return base.to_result(Prediction, template, request, outcome)
            first_error = outcome
        operation = base.predict(
            Prediction, PREDICT, RequestOptions(*options), inputs, deadline, request_id, first_error
        )
        return await self._driver.run(operation)

    async def classify(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int | None = None,
        label: str | None = None,
        top_k: int = 1,
        raw_outputs: bool = False,
        priority: str = "normal",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> ClassificationResult:
        """Predict with a model that classifies.

        Args:
            model: see `predict`, as for all other arguments.
            inputs: see `predict`.
            version: see `predict`.
            label: see `predict`.
            top_k: see `predict`.
            raw_outputs: see `predict`.
            priority: see `predict`.
            timeout: see `predict`.
            request_id: see `predict`.

        Returns:
            A sequence with one item for each row; of one row also its `label`, `probability` and
            `top`.

        Raises:
            WrongTaskError: the model does not classify.
            NeuronaError: see `predict`.
        """
        options = RequestOptions(model, version, label, top_k, raw_outputs, priority)
        deadline = self._base.deadline(timeout)
        operation = self._base.predict(
            ClassificationResult, CLASSIFY, options, inputs, deadline, request_id
        )
        return await self._driver.run(operation)

    async def regress(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int | None = None,
        label: str | None = None,
        raw_outputs: bool = False,
        priority: str = "normal",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> RegressionResult:
        """Predict with a model that returns numbers.

        Args:
            model: see `predict`, as for all other arguments.
            inputs: see `predict`.
            version: see `predict`.
            label: see `predict`.
            raw_outputs: see `predict`.
            priority: see `predict`.
            timeout: see `predict`.
            request_id: see `predict`.

        Returns:
            A sequence with one item for each row; of one row also its `value`, `unit`, `values` and
            `units`.

        Raises:
            WrongTaskError: the model does not return values.
            NeuronaError: see `predict`.
        """
        options = RequestOptions(model, version, label, 1, raw_outputs, priority)
        deadline = self._base.deadline(timeout)
        operation = self._base.predict(
            RegressionResult, REGRESS, options, inputs, deadline, request_id
        )
        return await self._driver.run(operation)

    def session(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        top_k: int = 1,
        raw_outputs: bool = False,
        priority: str = "normal",
        state: bytes = b"",
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> AsyncSession:
        """Begin a sequence that is sent as it comes, to a recurrent model with a state.

            async with client.session("lstm") as session:
                async for rows in measurements:
                    await session.send(rows)
                    print((await session.receive()).label)

        The server keeps the state between the messages of a session. The client keeps it too, and
        goes on with it at another server, without computing steps twice, when the server is lost,
        stops, hangs or gives the session up. Nothing is sent before the first steps.

        Args:
            model: see `predict`, as for `top_k`, `raw_outputs` and `priority`.
            version: number of the version; None: the server's choice. The session stays on it.
            label: name that points to a version, instead of its number.
            top_k: see `predict`.
            raw_outputs: see `predict`.
            priority: see `predict`.
            state: of an earlier session, to go on from; empty: the start of a sequence.
            timeout: seconds from the steps of a message to their answer, where `send` specifies
                none; None: the client's own timeout.
            request_id: what the server's log calls the session, printable ASCII.

        Returns:
            A context manager, which closes the session.

        Raises:
            InvalidInputError: an argument is outside its range.
        """
        options = RequestOptions(model, version, label, top_k, raw_outputs, priority)
        return AsyncSession(self._base, self._driver, options, state, timeout, request_id)

    async def models(self, *, timeout: float | None = None) -> list[ServedModel]:
        """List the models of the server.

        Args:
            timeout: seconds; None: the client's own timeout.

        Returns:
            All models with all their versions, whether they serve or not.

        Raises:
            NeuronaError: see `neurona_client.errors`.
        """
        return await self._driver.run(self._base.models(timeout))

    async def describe(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = None,
    ) -> ModelDescription:
        """Describe a model: its inputs and outputs, and what it records about itself.

        Args:
            model: name of the model.
            version: number of the version; None: the server's choice.
            label: name that points to a version, instead of its number.
            timeout: seconds; None: the client's own timeout.

        Returns:
            Names, dtypes and shapes of its tensors, labels, units, measured quality.

        Raises:
            NotFoundError: there is no such model, version or label.
            NeuronaError: see `neurona_client.errors`.
        """
        return await self._driver.run(self._base.describe(model, version, label, timeout))

    async def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """Ask whether the server, a service or a model serves.

        Args:
            service: "" for the server, "MODEL", "MODEL/VERSION", or a gRPC service.
            timeout: seconds; None: the client's own timeout.

        Returns:
            "SERVING", "NOT_SERVING", or "SERVICE_UNKNOWN" if there is no such service or model.

        Raises:
            NeuronaError: see `neurona_client.errors`.
        """
        return await self._driver.run(self._base.health(service, timeout))

    async def wait_until_ready(
        self, timeout: float | None = None, *, models: Iterable[str] = ()
    ) -> None:
        """Wait until the server serves, and each of some models.

        Args:
            timeout: seconds; None: no limit, whatever the client's own timeout.
            models: names of models.

        Raises:
            DeadlineExceededError: the server or a model was not ready within `timeout`.
        """
        await self._driver.run(self._base.wait_until_ready(models, timeout))

    async def close(self) -> None:
        """Close all connections; calls in flight end with ClosedError. May be called again."""
        self._base.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
