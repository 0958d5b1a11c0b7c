"""AsyncClient: predictions for coroutines."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from neurona_client.base_client import CLASSIFY, PREDICT, REGRESS, Predictions
from neurona_client.calls.async_driver import Loop
from neurona_client.descriptions import Description, ServedModel
from neurona_client.inputs import Inputs
from neurona_client.options import (
    DEFAULT_TARGET,
    MAX_PENDING_BYTES,
    MAX_PENDING_REQUESTS,
    RETRIES,
    Retries,
    Tls,
    options,
)
from neurona_client.request_templates import Wish
from neurona_client.results import Classified, Prediction, Regressed


class AsyncClient:
    """As `Client`, for the coroutines of one event loop, that of its first call.

        async with AsyncClient("127.0.0.1:8001") as client:
            answers = await asyncio.gather(*(client.predict("lenet5", one) for one in images))

    A coroutine that is cancelled gives its call up.
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
        retries: Retries = RETRIES,
        max_pending_bytes: int = MAX_PENDING_BYTES,
        max_pending_requests: int = MAX_PENDING_REQUESTS,
        max_message_bytes: int = 64 << 20,
        token_in_plaintext: bool = False,
    ) -> None:
        self._loop = Loop()
        self._calls = Predictions(
            options(
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
            self._loop.deliver,
            self._loop.soon,
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
        """Answers by the model's task.

        inputs: an array or list, or a dict of them by input name; one sample, or a batch with
            the batch axis first. Of an image model also a PNG or JPEG, as bytes or a Path.
        version, label: which one answers, else the server's choice.
        top_k: how many classes of a classification.
        raw_outputs: also the model's output tensors.
        priority: high, normal or low, among the requests that wait for the model.
        timeout: seconds.
        request_id: what the server's log calls it; such a call goes alone.

        Raises a NeuronaError: see `neurona_client.errors`.
        """
        wish = (model, version, label, top_k, raw_outputs, priority)
        calls, deadline, first = self._calls, self._calls.deadline(timeout), None
        quick = calls.quick(wish, inputs, request_id)
        if quick is not None:  # what is known and goes well takes the short way
            plan, written, stream = quick
            outcome = await self._loop.together(calls.gate, stream, written.message, deadline)
            if isinstance(outcome, bytes):
                return calls.read(Prediction, plan, written, outcome)
            first = outcome
        asked = (Prediction, PREDICT, Wish(*wish), inputs, deadline, request_id, first)
        return await self._loop.run(calls.predict(*asked))

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
    ) -> Classified:
        """As `predict`; raises WrongTaskError for a model that does not classify."""
        wish = Wish(model, version, label, top_k, raw_outputs, priority)
        return await self._loop.run(
            self._calls.predict(
                Classified, CLASSIFY, wish, inputs, self._calls.deadline(timeout), request_id
            )
        )

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
    ) -> Regressed:
        """As `predict`; raises WrongTaskError for a model that gives no values."""
        wish = Wish(model, version, label, 1, raw_outputs, priority)
        return await self._loop.run(
            self._calls.predict(
                Regressed, REGRESS, wish, inputs, self._calls.deadline(timeout), request_id
            )
        )

    async def models(self, *, timeout: float | None = None) -> list[ServedModel]:
        """What is served."""
        return await self._loop.run(self._calls.models(timeout))

    async def describe(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = None,
    ) -> Description:
        """What a model takes and gives, and what it says about itself."""
        return await self._loop.run(self._calls.describe(model, version, label, timeout))

    async def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """SERVING, NOT_SERVING or SERVICE_UNKNOWN; of the server, a service or a model."""
        return await self._loop.run(self._calls.health(service, timeout))

    async def wait_until_ready(
        self, timeout: float | None = None, *, models: Iterable[str] = ()
    ) -> None:
        """Until the server serves, and each of `models`. Raises DeadlineError after `timeout`."""
        await self._loop.run(self._calls.until_ready(models, timeout))

    async def close(self) -> None:
        """Calls that are under way end with ClosedError. May be called again."""
        self._calls.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
