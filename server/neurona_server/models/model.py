"""One version of one model, from its file to its last answer."""

import logging
import time
from collections.abc import Callable, Mapping

from neurona_protos.prediction_pb2 import State, Task
from neurona_server.batching.batcher import Batcher
from neurona_server.batching.device_scheduler import DeviceScheduler
from neurona_server.batching.request import Outputs, Request
from neurona_server.errors import UnavailableError
from neurona_server.models.batching_check import decide_batching
from neurona_server.models.onnx.session import Session
from neurona_server.models.options import ModelOptions, options_for
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.models.repository.settings import ModelSettings
from neurona_server.models.signature import (
    Signature,
    apply_declared_tensors,
    check_names,
    name_axes,
)
from neurona_server.models.task import find_task
from neurona_server.models.warm_up import run_samples, warm_up
from neurona_server.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

TERMINATION = 1.0  # seconds that a run has to heed that it is terminated


class Model:
    """Loaded and warmed up; `start` makes it serve, `drain` ends what it admitted.

    Raises LoadError when the file cannot be served, or its metadata contradict it.
    """

    def __init__(
        self,
        found: ModelSource,
        options: ModelOptions,
        metrics: Metrics,
        share: DeviceScheduler | None = None,
    ) -> None:
        self.name = found.name
        self.version = found.version
        self.state = State.STATE_LOADING
        self.settings = found.settings
        options = options_for(self.settings, options)
        if self.settings.ignored:
            ignored = ", ".join(self.settings.ignored)
            log.info(
                "%s: of its config.pbtxt, these have no effect here: %s",
                found,
                ignored,
                extra=self.log_fields,
            )
        self.on_answer: Callable[[Request, Outputs], None] | None = None
        """Called after each answer with the request and its outputs: a shadow gets its copies
        so. It must not raise."""

        self.copies: set[Request] = set()
        """What this one has as a shadow and has not answered: nobody waits for it."""

        self.metrics = metrics.for_version(found.name, found.version)
        self.sessions: list[Session] = []
        """One for each instance."""
        try:
            self._load(found, options, share)
        except BaseException:
            self.close()
            raise

    def _load(
        self, found: ModelSource, options: ModelOptions, share: DeviceScheduler | None
    ) -> None:
        for _ in range(options.instances):
            self.sessions.append(Session(found.path, options.runtime))
        session = self.sessions[0]
        self.provider = session.provider
        self.placement, self.degraded = session.placement, session.degraded
        self.signature = _signature(str(found), session, self.settings)
        batched = self.signature.batched
        tracer = options.tracer
        self.batcher = Batcher(
            str(found),
            options.policy,
            self.metrics,
            [one.new_run for one in self.sessions],
            batched=batched,
            scheduler=share,
            tracer=None if tracer is None else tracer(self.name, self.version, self.provider),
        )
        inputs = self.signature.inputs
        started = time.monotonic()
        if not all(warm_up(inputs, one.run, self.batcher) for one in self.sessions):
            log.info(
                "%s: made-up inputs do not suit it, so it is not warmed up",
                found,
                extra=self.log_fields,
            )
        for one in self.sessions:
            run_samples(str(found), self.settings.warm_up, self.signature, one.run)
        self.metrics.record_warm_up(time.monotonic() - started)
        answer = find_task(
            session.properties,
            session.class_labels,
            [*inputs, *self.signature.optional],
            self.signature.outputs,
            self.settings,
        )
        self.metadata, self.answer, self.softmax = answer.metadata, answer.index, answer.softmax
        self.metrics.record_placement(session.placement, bool(session.degraded))
        if session.degraded:
            log.warning("%s: degraded: %s", found, session.degraded, extra=self.log_fields)

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        """What a line of the log that concerns it says beside its message."""
        return {"model": self.name, "version": self.version}

    def start(self) -> None:
        batcher = self.batcher
        self.metrics.watch_batching(batcher.queue, batcher.cost_model)
        # Read, not told: what it replaces has the same series, and changes its mind to the last.
        self.metrics.inline.set_function(lambda: batcher.inline)
        batcher.start()
        self.state = State.STATE_READY
        self.metrics.set_model_info(
            Task.Name(self.metadata.task).removeprefix("TASK_"), self.provider
        )

    def drain(self, timeout: float) -> bool:
        """Takes no more and waits until all that was admitted is answered.

        False when `timeout` (seconds) was too short: what still waits or runs then ends with
        UnavailableError, and runs are terminated; one that does not heed it is left behind.
        """
        self.state = State.STATE_DRAINING
        self.batcher.close()
        for request in self.copies.copy():
            request.cancel(UnavailableError("a shadow that stops answers no copies"))
        end = time.monotonic() + timeout
        if self.batcher.join(end) and self.batcher.wait_until_idle(end):
            self.batcher.release_device()
            return True
        error = UnavailableError("the server stopped before the request's turn came")
        if lost := self.batcher.cancel_all(error):
            log.warning(
                "%s: stopped with %d requests unanswered", self, lost, extra=self.log_fields
            )
        drained = self.batcher.join(time.monotonic() + TERMINATION)
        if drained:
            self.batcher.release_device()
        return drained

    def wait(self) -> None:
        """Until its last run has ended, however long that takes; for one that was drained."""
        self.batcher.join()
        self.batcher.release_device()

    def close(self) -> None:
        """Gives its memory back, and takes its series out of the metrics. For one that is
        drained."""
        for session in self.sessions:
            session.close()
        self.metrics.release()


def _signature(model: str, session: Session, settings: ModelSettings) -> Signature:
    """The graph's, held to what the model's settings say of it. Raises LoadError."""
    check_names("input", [*session.inputs, *session.optional], settings.inputs)
    check_names("output", session.outputs, settings.outputs)
    taken = apply_declared_tensors(settings.declared, "input", [*session.inputs, *session.optional])
    taken = name_axes("input", taken, settings.inputs)
    inputs, optional = taken[: len(session.inputs)], taken[len(session.inputs) :]
    outputs = apply_declared_tensors(settings.declared, "output", session.outputs)
    outputs = name_axes("output", outputs, settings.outputs)
    batched = decide_batching(model, inputs, outputs, settings, session.run)
    return Signature(inputs, outputs, optional, batched=batched)
