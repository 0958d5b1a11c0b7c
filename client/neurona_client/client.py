"""Client: predictions for threads, and for programs without any."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from neurona_client.base_client import CLASSIFY, PREDICT, REGRESS, Predictions
from neurona_client.calls.sync_driver import Reply, run, soon, together
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


class Client:
    """Predictions from one or several servers. Any number of threads may share a client.

        with Client("127.0.0.1:8001") as client:
            print(client.predict("lenet5", pixels).label)

    target: HOST:PORT, unix:PATH, dns:///NAME:PORT, or several of them.
    coalesce: calls of all threads share a stream; False: each is a call of its own.
    timeout: seconds for calls that say none; None: without end.
    token: sent with each call. Refused in plaintext to other machines, unless
        `token_in_plaintext` says that the network is safe.
    tls: True for servers whose certificate gRPC trusts by itself, else a `Tls`.
    compression: of requests, with gzip.
    retries: how often a call is tried; see `Retries`.
    max_pending_bytes, max_pending_requests: of inputs whose answers have not come. Calls beyond
        it wait, so that memory stays bounded.
    max_message_bytes: a larger request or answer is refused.

    Calls that share a stream are taken back only as far as the stream can: one that is given up
    (its timeout, Ctrl-C) before it was sent is not sent; of one that was, the server goes on, and
    its answer is dropped. Calls with a `request_id`, in a recorded OpenTelemetry span (which they
    pass on), or with more than 64 KiB of inputs go alone.

    A client does not survive a fork: make it in the child.

    Raises ValueError for options that cannot be meant, OSError for files that cannot be read.
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
            Reply.deliver,
            soon,
        )

    def predict(
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
            outcome = together(calls.gate, stream, written.message, deadline)
            if isinstance(outcome, bytes):
                return calls.read(Prediction, plan, written, outcome)
            first = outcome
        asked = (Prediction, PREDICT, Wish(*wish), inputs, deadline, request_id, first)
        return run(calls.predict(*asked))

    def classify(
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
        return run(
            self._calls.predict(
                Classified, CLASSIFY, wish, inputs, self._calls.deadline(timeout), request_id
            )
        )

    def regress(
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
        return run(
            self._calls.predict(
                Regressed, REGRESS, wish, inputs, self._calls.deadline(timeout), request_id
            )
        )

    def models(self, *, timeout: float | None = None) -> list[ServedModel]:
        """What is served."""
        return run(self._calls.models(timeout))

    def describe(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float | None = None,
    ) -> Description:
        """What a model takes and gives, and what it says about itself."""
        return run(self._calls.describe(model, version, label, timeout))

    def health(self, service: str = "", *, timeout: float | None = None) -> str:
        """SERVING, NOT_SERVING or SERVICE_UNKNOWN; of the server, a service or a model."""
        return run(self._calls.health(service, timeout))

    def wait_until_ready(self, timeout: float | None = None, *, models: Iterable[str] = ()) -> None:
        """Until the server serves, and each of `models`. Raises DeadlineError after `timeout`."""
        run(self._calls.until_ready(models, timeout))

    def close(self) -> None:
        """Calls that are under way end with ClosedError. May be called again."""
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
