"""A batch while it runs: known to its requests, so that the last to leave can stop it."""

from collections.abc import Sequence
from typing import Protocol

from neurona_server.batching.request import Inputs, Outputs, Request


class Run(Protocol):
    """One run of a model, to be used once."""

    def __call__(self, inputs: Inputs) -> Outputs:
        """Blocks until the outputs are there. Raises whatever the model raises."""

    def terminate(self) -> None:
        """Makes a run that is under way, or yet to come, raise as soon as it can."""


class Running:
    """The `Place` of the requests of a batch; while some of them want it, it runs on."""

    def __init__(self, batch: Sequence[Request], run: Run) -> None:
        self.batch = batch
        self._run = run
        self.terminated = False
        for request in batch:
            request.place = self
        self._check()  # some may have ended before they knew this place

    def leave(self, _: Request) -> None:
        self._check()

    def _check(self) -> None:
        if not self.terminated and all(request.ended for request in self.batch):
            self.terminated = True
            self._run.terminate()
