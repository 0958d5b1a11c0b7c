"""The store of sessions: their turns, their ends, and their answers in any order of events."""

import threading
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from support.fakes import Clock
from support.recurrent_models import FEATURES, RecurrentModel, save_recurrent

from neurona_protos.prediction_pb2 import DATA_TYPE_FLOAT
from neurona_server.batching.policy import BatchPolicy, Priority
from neurona_server.errors import (
    AlreadyExistsError,
    CancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    QueueFullError,
    UnavailableError,
)
from neurona_server.models.lifecycle.drains import DrainPool
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.rpc import sessions
from neurona_server.rpc.sessions import SessionLimits, SessionStore
from neurona_server.rpc.submission import ParsedRequest, submit
from neurona_server.rpc.worker_pool import WorkerPool
from neurona_server.sequences.state_bytes import SequenceState
from neurona_server.telemetry.metrics import Metrics

SIZE = 5
"""Sessions of an interleaving."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = save_recurrent(
        tmp_path_factory.mktemp("store") / "model.onnx", RecurrentModel("GRU", answer="both")
    )
    metrics = Metrics(CollectorRegistry())
    options = ModelOptions(BatchPolicy(inline=False))
    model = Model(ModelSource("gru", 1, path), options, metrics)
    model.path, model.registry = path, metrics
    model.start()
    yield model
    model.drain(5.0)
    model.close()


@pytest.fixture
def store(clock):
    return SessionStore(SessionLimits(max_sessions=3, idle_timeout=100.0), clock)


@pytest.fixture
def clock():
    return Clock()


def opened(store, model, **options):
    return store.open(lambda: model, **options)


def test_the_session_idle_longest_ends_for_a_new_one(store, clock, model):
    reasons = []
    first, second, third = (opened(store, model, on_end=reasons.append) for _ in range(3))
    clock.now += 9
    with pytest.raises(QueueFullError, match="too many sessions: 3 are open") as caught:
        opened(store, model)
    assert caught.value.retry_after == 10
    clock.now += 1
    assert first.claim()  # in use, however long its step takes
    clock.now += 20
    fourth = opened(store, model)
    assert [one.is_open for one in (first, second, third, fourth)] == [True, False, True, True]
    assert reasons == ["session displaced: of 3 it was idle longest (the option max_sessions)"]
    assert second.end_reason == reasons[0]
    for one in (first, third, fourth):
        one.close()
    assert len(store) == len(model.open_sessions) == 0


def test_the_owner_of_most_sessions_makes_room_for_others(store, clock, model):
    """Nobody displaces those of who has fewer, or keeps all places by using them."""
    quiet = opened(store, model, owner="ann")
    clock.now += 90
    first, second = (opened(store, model, owner="ben") for _ in range(2))
    with pytest.raises(QueueFullError):  # its own are in use
        opened(store, model, owner="ben")
    other = opened(store, model, owner="eve")
    assert [one.is_open for one in (quiet, first, second)] == [True, False, True]
    second.claim()
    with pytest.raises(QueueFullError):
        opened(store, model, owner="eve")
    clock.now += 10
    again = opened(store, model, owner="eve")
    assert [one.is_open for one in (quiet, second, other)] == [True, True, False]
    for one in (quiet, second, again):
        one.close()
    assert not store._sessions
    assert not store._places


def test_a_session_has_a_place_for_each_row(store, clock, model):
    other, several = opened(store, model), opened(store, model)

    def of_rows(rows):
        return {"steps": np.zeros((rows, 1, FEATURES), np.float32)}

    several.claim()
    several.check_inputs(of_rows(2))
    several.check_inputs(of_rows(1))  # the first step has failed
    with pytest.raises(QueueFullError, match="one with several rows counts as that many"):
        opened(store, model)
    with pytest.raises(InvalidArgumentError, match=r"too large: 7 further rows \(expected at most"):
        several.check_inputs(of_rows(9))
    clock.now += 10
    several.check_inputs(of_rows(3))
    assert [one.is_open for one in (other, several)] == [False, True]
    several.release()
    clock.now += 10
    state = model.state_codec.encode(SequenceState(np.zeros((2, model.sequences.state_size)), 1))
    imported = opened(store, model, state=state)
    assert not several.is_open
    assert opened(store, model).is_open
    assert imported.is_open
    clock.now += 10
    assert [opened(store, model).is_open, imported.is_open] == [True, False]
    store.sweep()
    clock.now += 100
    store.sweep()
    assert not store._places


def test_a_server_that_stops_waits_for_no_session(store, model):
    """Not either for those of a version whose drain begins late."""
    versions = [
        Model(ModelSource("gru", number, model.path), ModelOptions(), model.registry)
        for number in (2, 3)
    ]
    for version in versions:
        version.start()
    drains = DrainPool(5.0, session_timeout=60.0)
    sessions = [opened(store, version) for version in versions]
    futures = drains.start_drains(versions[:1])
    assert sessions[0].is_open
    drains.end_sessions("session ended: the server stops")
    for future in (*futures, *drains.start_drains(versions[1:])):
        future.result(20)
    assert all(session.end_reason.startswith("session ended: ") for session in sessions)


def test_without_a_thread_that_ends_idle_sessions_none_begins(store, model, monkeypatch):
    def fail(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            opened(store, model)
    assert not len(store)
    session = opened(store, model)
    assert store._sweeper.is_alive()
    session.close()
    store.stop()


def test_an_idle_session_expires_and_one_with_a_step_in_flight_does_not(store, clock, model):
    idle, busy, recent = (opened(store, model, key=key) for key in "abc")
    busy.claim()
    clock.now += 60
    recent.claim()
    recent.release()
    clock.now += 41
    store.sweep()
    assert [one.is_open for one in (idle, busy, recent)] == [False, True, True]
    assert store.find("a") is None
    assert store.end_reason("a").startswith("session expired: idle for 100 s")
    busy.release()
    store.sweep()
    assert busy.is_open
    clock.now += 101
    store.sweep()
    assert not busy.is_open
    assert not recent.is_open


def test_a_key_is_of_one_session_at_a_time(store, model):
    first = opened(store, model, key=("caller", "gru", 7))
    with pytest.raises(AlreadyExistsError, match="session begun twice"):
        opened(store, model, key=("caller", "gru", 7))
    other = opened(store, model, key=("another caller", "gru", 7))
    assert store.find(("caller", "gru", 7)) is first
    first.close()
    assert store.end_reason(("caller", "gru", 7)) == "session ended by its caller"
    again = opened(store, model, key=("caller", "gru", 7))
    assert again.values is None
    again.close()
    other.close()


def test_steps_have_their_turns_in_order_also_if_they_fail_at_once(store, model, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_WAITING_STEPS", 2000)
    session = opened(store, model)
    order = []

    def run(number):
        order.append(number)
        session.release()

    assert session.claim()
    for number in range(2000):  # deeper than the interpreter's stack
        assert not session.claim(partial(run, number))
    with pytest.raises(QueueFullError, match="too many steps"):
        session.claim(partial(run, 0))
    session.release()
    assert order == [*range(2000)]
    assert session.claim()
    session.close()


def test_a_version_that_is_unloaded_ends_its_sessions_and_takes_no_more(tmp_path, store):
    path = save_recurrent(tmp_path / "model.onnx")
    model = Model(ModelSource("lstm", 1, path), ModelOptions(), Metrics(CollectorRegistry()))
    model.start()
    reasons = []
    session = opened(store, model, on_end=reasons.append)
    draining = threading.Thread(target=model.drain_sessions, args=(30.0,))
    draining.start()
    assert draining.is_alive()
    session.close()
    draining.join(5)
    assert not draining.is_alive()
    late = opened(store, model, on_end=reasons.append)
    assert model.drain(5.0)
    assert reasons == ["session ended: lstm/1 is unloaded"]
    assert not late.is_open
    with pytest.raises(UnavailableError, match="is unloaded"):
        opened(store, model)
    assert len(store) == 0
    model.close()


class Answer:
    """A responder that keeps what it gets."""

    trace = None
    request_id = trace_id = ""
    defer = None
    arrived = 0.0

    def __init__(self, session, deadline):
        self.session = session
        self.deadline = deadline
        self.outcome = None
        self.done = threading.Event()
        self.cancel = lambda: None

    def on_cancel(self, callback):
        self.cancel = callback

    def reply(self, response):
        self.outcome = response
        self._finish()

    def fail(self, error):
        self.outcome = error
        self._finish()

    def _finish(self):
        if self.session is not None:
            self.session.release()
        self.done.set()


class Outputs:
    """A response writer that keeps the outputs."""

    def __call__(self, outputs):
        return [np.array(one) for one in outputs]

    def expected_bytes(self, rows):
        return 0

    def ranked_classes(self, answer):
        return 0


WORKERS = WorkerPool()


def run(model, steps, session=None, deadline=np.inf):
    answer = Answer(session, deadline)
    if session is not None:
        assert session.claim()
    parsed = ParsedRequest(
        {"steps": (DATA_TYPE_FLOAT, steps.shape)},
        lambda: {"steps": steps},
        Outputs(),
        deadline,
        Priority.NORMAL,
        steps.nbytes,
        session=session,
    )
    submit(model.registry, lambda: model, lambda _: parsed, answer, WORKERS, 0)
    return answer


ACTIONS = st.sampled_from(
    [
        *("step", "step", "step", "several", "cancel", "expire"),
        *("leave", "move", "wrong", "whole", "poison"),
    ]
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(ACTIONS, min_size=SIZE, max_size=SIZE), min_size=1, max_size=8))
def test_any_interleaving_has_the_answers_of_each_sequence_alone(model, rounds):
    """Sessions step, leave, go on elsewhere, are cancelled, expire and fail beside each other."""
    alone = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    store = SessionStore(SessionLimits(idle_timeout=0))
    random = np.random.default_rng(1)
    callers = [SimpleNamespace(session=opened(store, model), history=[]) for _ in range(SIZE)]
    for actions in rounds:
        pending = []
        for caller, action in zip(callers, actions, strict=True):
            rows = 1 + callers.index(caller) % 2
            count = 3 if action in ("several", "whole") else 1
            steps = random.standard_normal((rows, count, FEATURES)).astype(np.float32)
            if action in ("leave", "poison"):
                caller.session.close()
                caller.session, caller.history = opened(store, model), []
                if action == "poison":  # of a neighbour, who then leaves
                    size = model.sequences.state_size
                    caller.session.values = np.full((rows, size), np.nan, np.float32)
                    pending.append((None, run(model, steps, caller.session), steps))
            elif action == "move":
                state = caller.session.export_state()
                store.evict(caller.session, "full", "another needs its place")
                caller.session = opened(store, model, state=state)
            elif action == "whole":
                pending.append((None, run(model, steps), steps))
            elif action == "wrong":
                wrong = np.zeros((rows, 1, FEATURES + 1), np.float32)
                pending.append((None, run(model, wrong, caller.session), wrong))
            else:
                deadline = time.monotonic() - 1 if action == "expire" else np.inf
                answer = run(model, steps, caller.session, deadline)
                pending.append((caller, answer, steps))
                if action == "cancel":
                    answer.cancel()
        for caller, answer, steps in pending:
            assert answer.done.wait(20)
            if caller is None:
                continue
            if isinstance(answer.outcome, Exception):
                assert isinstance(answer.outcome, CancelledError | DeadlineExceededError)
            else:
                caller.history.append(steps)
                whole = np.concatenate(caller.history, axis=1)
                last, every = alone.run(None, {"steps": whole})
                np.testing.assert_allclose(answer.outcome[0], last, rtol=1e-5, atol=1e-6)
                own = every[:, -steps.shape[1] :]
                np.testing.assert_allclose(answer.outcome[1], own, rtol=1e-5, atol=1e-6)
            assert caller.session.steps == sum(one.shape[1] for one in caller.history)
        for caller, action in zip(callers, actions, strict=True):
            if action == "poison":
                caller.session.close()
                caller.session, caller.history = opened(store, model), []
    for caller in callers:
        caller.session.close()
    assert len(model.open_sessions) == 0


def test_a_thread_ends_idle_sessions_while_there_are_some(model):
    store = SessionStore(SessionLimits(idle_timeout=0.05))
    ended = threading.Event()
    opened(store, model, on_end=lambda _: ended.set())
    assert ended.wait(10)
    assert len(store) == 0
    again = threading.Event()  # which begins the thread again, or finds it
    opened(store, model, on_end=lambda _: again.set())
    assert again.wait(10)
    store.stop()
