"""Real threads, a real model, a hundred thousand requests: every one is accounted for."""

import logging
import math
import threading
import time
from collections import Counter

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from neurona_server.batching.policy import BatchPolicy, Priority
from neurona_server.batching.request import Request
from neurona_server.errors import CancelledError, NeuronaError, QueueFullError
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.telemetry.metrics import Metrics

CALLERS = 4
EACH = 25_000


def run_all(run):
    while run():
        pass


class CountedRequest(Request):
    """Counts what becomes of it, and compares its outputs with what they should be."""

    def __init__(self, caller, number, fate, index, deadline, priority):
        super().__init__({"index": index}, len(index), (), deadline, priority)
        self.caller = caller
        self.number = number
        self.fate = fate

    def finish(self, outputs, error):
        self.caller.finished[self.number] += 1
        self.caller.outcomes[self.fate, "ok" if error is None else error.outcome] += 1
        index = self.inputs["index"]
        if error is None and outputs[0].tolist() != (10.0 * index).tolist():
            self.caller.wrong.append((index, outputs[0]))


class Caller(threading.Thread):
    """Asks for `table[index]`; the model's whole run fails on an index that is not there."""

    def __init__(self, model, seed):
        super().__init__()
        self.model = model
        self.random = np.random.default_rng(seed)
        self.finished = Counter()  # how often each request was finished
        self.outcomes = Counter()
        self.wrong = []
        self.rejected = 0

    def run(self):
        fates = self.random.choice(
            ["ok", "cancel", "poison", "expire"], EACH, p=[0.8, 0.1, 0.05, 0.05]
        )
        for number, fate in enumerate(fates):
            index = self.random.integers(0, 4, self.random.integers(1, 4))
            if fate == "poison":
                index[-1] = 9
            request = self.request(number, fate, index)
            while not self.admitted(request):
                time.sleep(0.001)
            if fate == "cancel":
                request.cancel(CancelledError())

    def request(self, number, fate, index):
        deadline = time.monotonic() + 0.002 if fate == "expire" else math.inf
        level = Priority(number % 3)
        return CountedRequest(self, number, fate, index, deadline, level)

    def admitted(self, request):
        try:
            self.model.batcher.submit(request, run_all)
        except QueueFullError:
            self.rejected += 1
            if request.deadline == math.inf:
                return False
            request.fail(QueueFullError("", 0.0))
        except NeuronaError as error:
            request.fail(error)
        return True


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    ("instances", "inline"), [(2, False), (1, None)], ids=["two instances", "inline and not"]
)
def test_every_request_is_answered_exactly_once(repository, caplog, instances, inline):
    caplog.set_level(logging.CRITICAL, "neurona_server")  # thousands fail on purpose
    registry = CollectorRegistry()
    source = ModelSource("picker", 1, repository / "picker" / "1" / "model.onnx")
    options = ModelOptions(BatchPolicy(max_queue_rows=1000, inline=inline), instances=instances)
    model = Model(source, options, Metrics(registry))
    model.start()
    callers = [Caller(model, seed) for seed in range(CALLERS)]
    for caller in callers:
        caller.start()
    while inline is None and any(caller.is_alive() for caller in callers):
        # Callers and the instance both run it.
        model.batcher._inline.enabled = not model.batcher.inline
        time.sleep(0.001)
    for caller in callers:
        caller.join()
    assert model.drain(60.0)
    outcome_counts = Counter()
    for caller in callers:
        outcome_counts.update(caller.outcomes)
        assert caller.wrong == []
        assert caller.finished == Counter(dict.fromkeys(range(EACH), 1))
    assert sum(outcome_counts.values()) == CALLERS * EACH
    by_fate = {fate: {o for f, o in outcome_counts if f == fate} for fate, _ in outcome_counts}
    # Once admitted, a more urgent request may displace them from the full queue.
    assert by_fate["ok"] <= {"ok", "rejected"}
    assert by_fate["poison"] <= {"failed", "rejected"}
    assert by_fate["cancel"] <= {"ok", "cancelled", "rejected"}
    assert outcome_counts["ok", "ok"] > 0.5 * outcome_counts.total()
    assert outcome_counts["poison", "failed"] > 0
    assert by_fate["expire"] <= {"ok", "expired", "rejected"}
    assert outcome_counts["cancel", "cancelled"] > 0
    assert repr(model.batcher.queue) == "<Queue closed: 0 requests, 0 rows, 0 bytes>"
