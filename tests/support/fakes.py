"""Fakes that make batching deterministic: a clock and a model that the test controls."""

import numpy as np
from prometheus_client import CollectorRegistry

from neurona_server.batching.batcher import Batcher
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.request import Request
from neurona_server.telemetry.metrics import Metrics


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class FakeRequest(Request):
    """Keeps how it was finished, each time it was."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.results = []

    def finish(self, outputs, error):
        self.results.append((outputs, error))


class SubmittedRequest(FakeRequest):
    """A request of `values`, each in as many columns, that the batcher has been given."""

    def __init__(self, batcher, values, *, columns=1, **options):
        array = np.repeat(np.array(values, np.float32)[:, None], columns, axis=1)
        super().__init__({"x": array}, len(array), array.shape[1:], **options)
        batcher.submit(self)

    @property
    def answer(self):
        """The first column of the output, or the class of the error."""
        ((outputs, error),) = self.results  # exactly once
        return type(error) if error else np.atleast_2d(outputs[0])[:, 0].tolist()


class Puppet:
    """A model that doubles its input; `before` is called with the inputs of each run."""

    def __init__(self, before=lambda inputs: None, answer=lambda inputs: [inputs["x"] * 2]):
        self.batches = []  # the rows of each run
        self.before = before
        self.answer = answer

    def __call__(self):
        return PuppetRun(self)


class PuppetRun:
    def __init__(self, puppet):
        self.puppet = puppet
        self.terminated = False

    def __call__(self, inputs):
        self.puppet.batches.append(len(inputs["x"]))
        self.puppet.before(inputs)
        if self.terminated:
            raise RuntimeError("terminated")
        return self.puppet.answer(inputs)

    def terminate(self):
        self.terminated = True


class PuppetBatcher(Batcher):
    """A batcher with a fake clock, metrics that the test reads, and steps instead of a thread."""

    def __init__(self, policy=None, **options):
        self.clock = Clock()
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry).for_version("puppet", 1)
        policy = policy or BatchPolicy(max_rows=8, max_queue_rows=64)
        super().__init__(
            "puppet/1", policy, metrics, [("cpu", Puppet())], clock=self.clock, **options
        )
        metrics.watch_batching(self.queue, self.cost_model)

    def step(self, puppet):
        """Take and run one batch, as an idle instance would."""
        batch = self.queue.take_batch()
        if batch is not None:
            self.process(batch, puppet)
        return batch

    def run_inline(self, puppet):
        """Run what waits, as the transport's thread would."""
        self._shared_run = puppet
        return self.serve_inline()

    def serve(self, puppet=None):
        """Run what waits as an instance does, whose model is `puppet`."""
        if puppet is not None:
            self._runs.idle["cpu"] = [puppet]
        super().serve()

    def value(self, name, **labels):
        labels = {"model": "puppet", "version": "1", **labels}
        return self.registry.get_sample_value(f"neurona_{name}", labels)
