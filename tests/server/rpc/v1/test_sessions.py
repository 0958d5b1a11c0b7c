"""Session: a sequence in pieces has the answers of the whole, whatever else happens meanwhile."""

import hashlib
import queue
import re
import shutil
import threading
import time
import weakref

import grpc
import numpy as np
import onnxruntime
import pytest
from support.fakes import Clock
from support.in_process_server import InProcessServer
from support.recurrent_models import FEATURES, RecurrentModel, save_recurrent

from neurona_protos.prediction_pb2 import (
    DescribeModelRequest,
    PredictRequest,
    SessionRequest,
    SessionStart,
    UnloadModelRequest,
)
from neurona_protos.tensors import to_array, to_tensor
from neurona_server.batching.policy import BatchPolicy
from neurona_server.rpc.limits import Limits
from neurona_server.rpc.security.tokens import Access
from neurona_server.rpc.sessions import SessionLimits, SessionStore
from neurona_server.rpc.transports.listener import ListenerOptions
from neurona_server.rpc.v1 import sessions
from neurona_server.sequences.state_bytes import SequenceState

LSTM = RecurrentModel(layers=2, answer="both")
VERSION = {"model": "lstm", "version": "1"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sessions")
    save_recurrent(root / "lstm" / "1" / "model.onnx", LSTM)
    save_recurrent(root / "gru" / "1" / "model.onnx", RecurrentModel("GRU"))
    bidirectional = RecurrentModel(direction="bidirectional")
    save_recurrent(root / "both-ways" / "1" / "model.onnx", bidirectional)
    return root


@pytest.fixture(scope="module")
def server(root, transport):
    server = InProcessServer(root)
    yield server
    server.stop()


@pytest.fixture
def make_server(root, transport):
    servers = []

    def make_server(*arguments, root=root, **options):
        servers.append(InProcessServer(root, *arguments, **options))
        return servers[-1]

    yield make_server
    for one in servers:
        one.stop()


class Caller:
    """A caller's end of a session."""

    def __init__(self, server, model="lstm", metadata=None, timeout=30, **start):
        self._outgoing = queue.SimpleQueue()
        self._start = SessionStart(model=model, raw_outputs=True, **start)
        self.responses = server.prediction.Session(
            iter(self._outgoing.get, None), metadata=metadata, timeout=timeout
        )

    def send(self, steps=None, *, start=None, **fields):
        """Send steps of shape (rows, steps, features)."""
        inputs = [] if steps is None else [to_tensor("steps", np.float32(steps))]
        start, self._start = start or self._start, None
        self._outgoing.put(SessionRequest(start=start, inputs=inputs, **fields))

    def receive(self):
        return next(self.responses)

    def ask(self, steps=None, **fields):
        self.send(steps, **fields)
        return self.receive()

    def close(self):
        self._outgoing.put(None)

    def ending(self):
        """Return the last message and the status that ends the call."""
        last = next(self.responses)
        with pytest.raises(grpc.RpcError) as caught:
            next(self.responses)
        self.close()
        return last, caught.value

    def failure(self):
        with pytest.raises(grpc.RpcError) as caught:
            next(self.responses)
        self.close()
        return caught.value.code().name, caught.value.details()


def answer(response):
    """Return the outputs of a response."""
    assert not response.HasField("error"), response.error.message
    return [to_array(tensor) for tensor in response.response.outputs]


def error(response):
    return grpc_name(response.error.code), response.error.message


def grpc_name(code):
    return next(one.name for one in grpc.StatusCode if one.value[0] == code)


def sequence(seed, rows=1, steps=12):
    return np.random.default_rng(seed).standard_normal((rows, steps, FEATURES)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(root):
    """Returns the outputs of the file itself for whole sequences."""
    session = onnxruntime.InferenceSession(
        root / "lstm" / "1" / "model.onnx", providers=["CPUExecutionProvider"]
    )
    return lambda steps: session.run(None, {"steps": steps})


def assert_equal(outputs, expected_outputs):
    last, every = outputs
    np.testing.assert_allclose(last, expected_outputs[0], rtol=1e-5, atol=1e-6)
    own = expected_outputs[1][:, -every.shape[1] :]
    np.testing.assert_allclose(every, own, rtol=1e-5, atol=1e-6)


def test_a_sequence_in_pieces_has_the_answers_of_the_whole(server, expected):
    whole = sequence(1, rows=2)
    caller = Caller(server)
    sent = 0
    for number, size in enumerate((1, 3, 1, 5, 2), 1):
        response = caller.ask(whole[:, sent : sent + size], id=number)
        sent += size
        assert (response.id, response.steps) == (number, sent)
        assert response.state == b""
        assert_equal(answer(response), expected(whole[:, :sent]))
    caller.close()
    assert list(caller.responses) == []


def test_steps_of_many_sessions_share_runs_and_no_state(make_server, expected):
    server = make_server(BatchPolicy(inline=False))
    callers = [Caller(server) for _ in range(24)]
    wholes = [sequence(seed, rows=1 + seed % 3, steps=4) for seed in range(24)]
    for sent in range(4):
        for caller, whole in zip(callers, wholes, strict=True):
            caller.send(whole[:, sent : sent + 1])
        for caller, whole in zip(callers, wholes, strict=True):
            assert_equal(answer(caller.receive()), expected(whole[:, : sent + 1]))
    assert server.count("session_steps_total", **VERSION) == 96
    assert server.count("batch_rows_count", **VERSION) < 96
    for caller in callers:
        caller.close()


def test_a_nan_of_one_caller_reaches_no_other_and_no_later_one(make_server, expected):
    server = make_server(BatchPolicy(inline=False))
    codec = server.registry.resolve("lstm").state_codec
    nan = codec.encode(SequenceState(np.full((1, LSTM.state_size), np.nan, np.float32), 1))
    whole = sequence(3, steps=6)
    poisoned, healthy = Caller(server, state=nan), Caller(server)
    for sent in range(6):
        poisoned.send(whole[:, sent : sent + 1], return_state=True)
        healthy.send(whole[:, sent : sent + 1])
        assert np.isnan(codec.decode(poisoned.receive().state).values).any()
        assert_equal(answer(healthy.receive()), expected(whole[:, : sent + 1]))
    poisoned.close()
    list(poisoned.responses)
    later = Caller(server)
    assert_equal(answer(later.ask(whole[:, :1])), expected(whole[:, :1]))


def test_sessions_and_whole_sequences_share_runs(make_server, expected):
    server = make_server(BatchPolicy(inline=False))
    whole = sequence(4, steps=8)
    caller = Caller(server)
    steps = to_tensor("steps", whole)
    request = PredictRequest(model="lstm", inputs=[steps], raw_outputs=True)
    for sent in range(8):
        futures = [server.prediction.Predict.future(request, timeout=30) for _ in range(4)]
        assert_equal(answer(caller.ask(whole[:, sent : sent + 1])), expected(whole[:, : sent + 1]))
        for future in futures:
            outputs = [to_array(tensor) for tensor in future.result().outputs]
            assert_equal(outputs, expected(whole))


def test_a_state_goes_on_on_another_server(server, make_server, expected):
    whole = sequence(5, rows=2)
    first = Caller(server)
    state = first.ask(whole[:, :5], return_state=True).state
    assert first.ask(return_state=True).state == state  # a question changes nothing
    second = Caller(make_server(), state=state)
    response = second.ask(whole[:, 5:9], return_state=True)
    assert response.steps == 9
    assert_equal(answer(response), expected(whole[:, :9]))
    assert_equal(answer(first.ask(whole[:, 5:6])), expected(whole[:, :6]))


def test_a_large_state_is_read_beside_large_inputs(server, expected):
    whole = sequence(23, rows=3000, steps=2)
    first = Caller(server)
    state = first.ask(whole[:, :1], return_state=True).state
    assert len(state) > 128 << 10
    second = Caller(server, state=state)
    assert_equal(answer(second.ask(whole[:, 1:])), expected(whole))
    for one in (first, second):
        one.close()


@pytest.mark.parametrize("method", ["cellular", "ragged", "equal-lengths"])
def test_every_method_of_batching_has_sessions(root, tmp_path, make_server, expected, method):
    folder = copy_of(root, tmp_path)
    (folder / "lstm" / "model.toml").write_text(f'sequence_batching = "{method}"\n')
    server = make_server(BatchPolicy(inline=False), root=folder)
    callers = [Caller(server) for _ in range(6)]
    wholes = [sequence(seed, rows=1 + seed % 2, steps=15) for seed in range(6)]
    long = sequence(99, steps=40)
    request = PredictRequest(model="lstm", inputs=[to_tensor("steps", long)], raw_outputs=True)
    for start, stop in ((0, 1), (1, 9), (9, 10), (10, 15)):
        future = server.prediction.Predict.future(request, timeout=30)
        for caller, whole in zip(callers, wholes, strict=True):
            caller.send(whole[:, start:stop])
        for caller, whole in zip(callers, wholes, strict=True):
            assert_equal(answer(caller.receive()), expected(whole[:, :stop]))
        assert_equal([to_array(one) for one in future.result().outputs], expected(long))
    for caller in callers:
        caller.close()


def test_messages_that_were_sent_at_once_are_answered_in_their_order(server, expected):
    whole = sequence(6, steps=200)
    caller = Caller(server)
    for number in range(200):
        caller.send(whole[:, number : number + 1], id=number + 1)
    caller.close()
    responses = list(caller.responses)
    assert [one.id for one in responses] == [*range(1, 201)]
    assert_equal(answer(responses[-1]), expected(whole))


def test_a_message_that_fails_leaves_the_state_as_it_was(server, expected):
    whole = sequence(7, rows=2, steps=4)
    caller = Caller(server)
    caller.ask(whole[:, :1])
    bad = [
        (whole[:1, 1:2], "INVALID_ARGUMENT", r"row count changed: .* 1 rows \(expected 2"),
        (whole[:, :0], "INVALID_ARGUMENT", r"no step|without values"),
        (whole[:, 1:2, :2], "INVALID_ARGUMENT", r"input 'steps' is .*\(expected"),
        (whole[:0, 1:2], "INVALID_ARGUMENT", "no row"),
    ]
    for steps, code, pattern in bad:
        response = caller.ask(steps, id=9)
        assert error(response)[0] == code
        assert re.search(pattern, error(response)[1]), error(response)
        assert (response.id, response.steps) == (9, 1)
    assert_equal(answer(caller.ask(whole[:, 1:2])), expected(whole[:, :2]))


def test_a_session_that_begins_twice_goes_on(server, expected):
    whole = sequence(8)
    caller = Caller(server)
    caller.ask(whole[:, :1])
    response = caller.ask(whole[:, 1:2], start=SessionStart(model="lstm"))
    assert error(response) == (
        "INVALID_ARGUMENT",
        "session begun twice: a later message has a start (expected it in the first one only)",
    )
    assert_equal(answer(caller.ask(whole[:, 1:2])), expected(whole[:, :2]))


def test_a_step_without_a_beginning_is_rejected(server):
    call = server.prediction.Session(
        iter([SessionRequest(inputs=[to_tensor("steps", sequence(9))])]), timeout=30
    )
    with pytest.raises(grpc.RpcError, match="session not begun") as caught:
        next(call)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_length_beyond_the_session_is_an_error_of_its_own_input(tmp_path, make_server):
    save_recurrent(tmp_path / "lstm" / "1" / "model.onnx", RecurrentModel(lengths=True))
    server = make_server(root=tmp_path)
    neighbour, caller = Caller(server), Caller(server)

    def send(one, length):
        one._outgoing.put(
            SessionRequest(
                start=one._start,
                inputs=[
                    to_tensor("steps", sequence(10, steps=2)),
                    to_tensor("lengths", np.int32(length)),
                ],
            )
        )
        one._start = None

    for length in ([0], [-1], [3], [1, 2]):
        send(neighbour, [2])
        send(caller, length)
        response = caller.receive()
        assert error(response)[0] == "INVALID_ARGUMENT", length
        assert "lengths" in error(response)[1]
        assert response.steps == 0
        answer(neighbour.receive())


@pytest.mark.parametrize(
    ("start", "code", "pattern"),
    [
        ({"model": "nobody"}, "NOT_FOUND", "no model 'nobody'"),
        ({"version": 7}, "NOT_FOUND", "version 7 does not exist"),
        ({"model": "both-ways"}, "FAILED_PRECONDITION", "model 'both-ways' has no sessions: "),
        ({"priority": 9}, "INVALID_ARGUMENT", "priority is 9"),
        ({"state": b"mine"}, "INVALID_ARGUMENT", "state unknown"),
    ],
)
def test_a_session_that_cannot_begin_ends_its_call(server, start, code, pattern):
    caller = Caller(server, **start)
    caller.send()
    actual, details = caller.failure()
    assert (actual, pattern in details) == (code, True), details


def test_the_state_of_another_model_or_changed_is_rejected(server, tmp_path, make_server):
    state = Caller(server).ask(sequence(11), return_state=True).state
    other = tmp_path / "lstm" / "1" / "model.onnx"
    save_recurrent(other, RecurrentModel(layers=2, answer="both", seed=1))
    replaced = make_server(root=tmp_path)
    changed = state[:60] + bytes([state[60] ^ 1]) + state[61:]
    for where, start, pattern in (
        (server, {"model": "gru", "state": state}, "state of another model: 'lstm' version 1"),
        (replaced, {"state": state}, "state of another file"),
        (server, {"state": state[:-1]}, "state truncated"),
        (server, {"state": changed}, "state damaged"),
    ):
        caller = Caller(where, **start)
        caller.send()
        code, details = caller.failure()
        assert code == "INVALID_ARGUMENT"
        assert pattern in details


def test_a_caller_that_leaves_frees_its_session_and_its_step(make_server, wait_until):
    server = make_server(start_models=False)
    caller = Caller(server)
    caller.send(sequence(12))
    wait_until(lambda: server.count("queue_rows", **VERSION) == 1)
    assert server.count("sessions_open", **VERSION) == 1
    caller.responses.cancel()
    wait_until(lambda: server.count("requests_total", outcome="cancelled", **VERSION) == 1)
    wait_until(lambda: server.count("sessions_open", **VERSION) == 0)
    assert len(server.sessions) == 0
    assert server.count("queue_rows", **VERSION) == 0


def test_a_session_that_its_caller_has_ended_is_not_ended_by_the_server(make_server, wait_until):
    server = make_server(start_models=False)
    caller = Caller(server)
    caller.send(sequence(12))
    caller.close()
    wait_until(lambda: server.count("queue_rows", **VERSION) == 1)
    time.sleep(0.1)  # until the end of the caller's messages is there
    model = server.registry.resolve("lstm", 1)
    assert model.open_sessions.end_all("unloaded") == 1
    model.start()
    answer(caller.receive())
    assert list(caller.responses) == []
    assert caller.responses.code().name == "OK"


def test_an_idle_session_ends_and_its_caller_gets_the_state(make_server, expected):
    clock = Clock()
    server = make_server(sessions=SessionStore(SessionLimits(idle_timeout=20), clock))
    whole = sequence(13)
    caller = Caller(server)
    caller.ask(whole[:, :3])
    server.sessions.sweep()
    assert server.count("sessions_open", **VERSION) == 1
    clock.now += 21
    server.sessions.sweep()
    last, status = caller.ending()
    reason = "session expired: idle for 20 s (the option session_idle_timeout_s)"
    assert (last.ending, last.steps) == (reason, 3)
    assert (status.code().name, status.details()) == ("UNAVAILABLE", reason)
    assert server.count("sessions_evicted_total", reason="idle", **VERSION) == 1
    assert server.count("sessions_open", **VERSION) == 0
    again = Caller(server, state=last.state)
    assert_equal(answer(again.ask(whole[:, 3:4])), expected(whole[:, :4]))


def test_the_session_idle_longest_makes_room(make_server):
    clock = Clock()
    server = make_server(sessions=SessionStore(SessionLimits(2, idle_timeout=100), clock))
    oldest, other = Caller(server), Caller(server)
    for one in (oldest, other):
        one.ask(sequence(14))
    rejected = Caller(server)
    rejected.send()
    code, details = rejected.failure()
    assert code == "RESOURCE_EXHAUSTED"
    assert "too many sessions: 2 are open and in use" in details
    clock.now += 11
    other.ask(sequence(14))
    newest = Caller(server)
    newest.ask(sequence(14))
    last, status = oldest.ending()
    assert "session displaced" in last.ending
    assert last.state
    assert status.code().name == "UNAVAILABLE"
    assert server.count("sessions_evicted_total", reason="full", **VERSION) == 1
    answer(other.ask(sequence(14)))


def copy_of(root, tmp_path):
    target = tmp_path / "models"
    shutil.copytree(root / "lstm", target / "lstm")
    return target


def test_a_session_stays_on_its_version_through_a_swap(
    root, tmp_path, make_server, expected, wait_until
):
    folder = copy_of(root, tmp_path)
    server = make_server(root=folder, every=False)
    whole = sequence(15)
    caller = Caller(server)
    caller.ask(whole[:, :4])
    save_recurrent(folder / "lstm" / "2" / "model.onnx", RecurrentModel(seed=9))
    for _ in range(3):
        server.reconciler.poll_once()
    wait_until(lambda: server.registry.resolve("lstm").version == 2)
    newer = Caller(server)
    assert newer.ask(whole[:, :1]).response.version == 2
    response = caller.ask(whole[:, 4:])
    assert response.response.version == 1
    assert_equal(answer(response), expected(whole))
    caller.close()
    assert list(caller.responses) == []
    wait_until(lambda: server.count("sessions_open", **VERSION) == 0)


def test_a_session_of_a_replaced_version_ends_after_a_while(root, tmp_path, make_server):
    folder = copy_of(root, tmp_path)
    server = make_server(root=folder, every=False, session_drain=0.3)
    caller = Caller(server)
    caller.ask(sequence(16))
    save_recurrent(folder / "lstm" / "2" / "model.onnx", LSTM)
    for _ in range(3):
        server.reconciler.poll_once()
    last, status = caller.ending()
    assert last.ending == "session ended: lstm/1 is unloaded"
    assert last.state
    assert status.code().name == "UNAVAILABLE"


def test_a_stopping_server_answers_what_it_has_and_returns_the_state(
    make_server, expected, wait_until
):
    server = make_server(start_models=False)
    whole = sequence(17)
    caller = Caller(server)
    caller.send(whole[:, :2], id=1)
    caller.send(whole[:, 2:5], id=2)
    wait_until(lambda: server.count("queue_rows", **VERSION) == 1)
    stopping = threading.Thread(target=server.listener.stop, args=(30.0,))
    stopping.start()
    time.sleep(0.2)  # it stops, and waits for the answer
    server.registry.resolve("lstm", 1).start()
    assert [caller.receive().id for _ in range(2)] == [1, 2]
    last, status = caller.ending()
    stopping.join(10)
    assert "server stops" in last.ending
    assert (last.steps, status.code().name) == (5, "UNAVAILABLE")
    elsewhere = Caller(make_server(), state=last.state)
    assert_equal(answer(elsewhere.ask(whole[:, 5:])), expected(whole))


def test_a_caller_that_reads_nothing_is_not_read_on(make_server, monkeypatch, wait_until):
    monkeypatch.setattr(sessions, "MAX_UNREAD", 8)
    server = make_server()
    taken = threading.Semaphore(0)
    count = 3000
    big = sequence(18, rows=64, steps=20)  # its answers fill the connection's window

    def messages():
        for number in range(count):
            taken.release()
            start = SessionStart(model="lstm", raw_outputs=True) if number == 0 else None
            yield SessionRequest(start=start, inputs=[to_tensor("steps", big)], id=number + 1)

    responses = server.prediction.Session(messages(), timeout=60)
    steps = 0.0
    while (now := server.count("session_steps_total", **VERSION)) != steps or not steps:
        steps = now
        time.sleep(0.3)
    sent = taken._value
    assert steps < 20 * count / 4
    assert sent < count / 2
    assert [next(responses).id for _ in range(200)] == [*range(1, 201)]
    responses.cancel()
    wait_until(lambda: server.count("sessions_open", **VERSION) == 0)


def test_describe_counts_the_open_sessions(server):
    caller = Caller(server, model="gru")
    caller.ask(sequence(19))
    request = DescribeModelRequest(model="gru")
    assert server.models.Describe(request, timeout=10).sequences.open_sessions == 1
    caller.close()
    assert list(caller.responses) == []


def test_a_token_begins_sessions_of_its_models_only(root, tmp_path, make_server):
    token = "t" * 32
    digest = hashlib.sha256(token.encode()).hexdigest()
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(
        f'[[tokens]]\nname = "gru"\nsha256 = "{digest}"\nrights = ["predict"]\nmodels = ["gru"]\n'
    )
    server = make_server(options=ListenerOptions(1 << 20, access=Access(tokens)))
    metadata = (("authorization", f"Bearer {token}"),)
    answer(Caller(server, model="gru", metadata=metadata).ask(sequence(20)))
    for caller, code in (
        (Caller(server, metadata=metadata), "PERMISSION_DENIED"),
        (Caller(server, model="nobody", metadata=metadata), "PERMISSION_DENIED"),
        (Caller(server), "UNAUTHENTICATED"),
    ):
        caller.send()
        assert caller.failure()[0] == code


def test_a_large_message_and_a_response_that_is_too_large(make_server):
    server = make_server(limits=Limits(max_message_bytes=40_000))
    caller = Caller(server)
    large = sequence(21, steps=2000)  # of 24 kB: parsed without its data
    response = caller.ask(large, return_state=True)
    assert response.steps == 2000
    assert answer(response)[1].shape == (1, 2000, 2)
    code, message = error(caller.ask(sequence(21, steps=6000)))
    assert code == "RESOURCE_EXHAUSTED"
    assert "expected at most" in message
    after = caller.ask(return_state=True)
    assert (after.steps, after.state) == (2000, response.state)


def test_a_model_is_freed_once_its_sessions_have_ended(
    root, tmp_path, make_server, wait_until, without_collector
):
    """And without the garbage collector, also after errors."""
    folder = copy_of(root, tmp_path)
    server = make_server(root=folder, explicit=True, load_model=["lstm"])
    model = weakref.ref(server.registry.resolve("lstm"))
    caller = Caller(server)
    assert error(caller.ask(sequence(22)[:, :, 1:]))[0] == "INVALID_ARGUMENT"
    caller.ask(sequence(22))
    unloading = server.models.Unload.future(UnloadModelRequest(model="lstm"), timeout=30)
    answer(caller.ask(sequence(22)))
    assert not unloading.done()
    caller.close()
    assert list(caller.responses) == []
    unloading.result()
    wait_until(lambda: without_collector() or model() is None)
