"""Sequences by id: their parameters, their order, and how they end."""

import hashlib
import itertools
import threading
import time
import weakref

import grpc
import numpy as np
import pytest
from support import onnx_models, recurrent_models, stateful_models
from support.in_process_server import InProcessServer
from support.sequence_caller import SequenceCaller, error_of, output_of, step_request
from support.stateful_models import flag, state
from support.triton_requests import arrays, request

from neurona_protos import open_inference_pb2 as pb
from neurona_protos.prediction_pb2 import UnloadModelRequest
from neurona_server.rpc.security.tokens import Access
from neurona_server.rpc.sessions import SessionLimits, SessionStore
from neurona_server.rpc.transports.listener import ListenerOptions

STEPS = np.random.default_rng(0).standard_normal((1, 6, recurrent_models.FEATURES), np.float32)
NO_START = "must specify the START flag on the first request of the sequence"
NO_ID = "must specify a non-zero or non-empty correlation ID"

NUMBERS = itertools.count(1000)


@pytest.fixture
def new_id():
    """An id that no other test uses."""
    return next(NUMBERS)


@pytest.fixture(scope="session")
def sequence_models(tmp_path_factory):
    root = tmp_path_factory.mktemp("sequences")
    stateful_models.save_accumulator(root / "accumulator")
    stateful_models.save_accumulator(root / "other", scale=10)
    stateful_models.save_accumulator(root / "single", max_batch_size=0)
    stateful_models.save_simple_dyna_sequence(root / "numbered")
    recurrent_models.save_recurrent(root / "lstm" / "1" / "model.onnx")
    recurrent_models.save_recurrent(
        root / "both_ways" / "1" / "model.onnx",
        recurrent_models.RecurrentModel(direction="bidirectional"),
    )
    return root


@pytest.fixture(scope="session")
def sequence_server(sequence_models, transport):
    server = InProcessServer(sequence_models)
    yield server
    server.stop()


@pytest.fixture
def caller(sequence_server):
    return SequenceCaller(sequence_server)


@pytest.fixture
def lstm(sequence_server):
    return SequenceCaller(sequence_server, "lstm", name="steps", datatype="FP32")


@pytest.fixture
def open_server(sequence_models, transport):
    """Makes servers of a test."""
    servers = []

    def open_server(root=sequence_models, **options):
        servers.append(InProcessServer(root, **options))
        return servers[-1]

    yield open_server
    for server in servers:
        server.stop()


def send_all(caller, sequence_id, values=(1, 2, 3)):
    """Send a sequence, and return the answers of its steps."""
    last = len(values) - 1
    return [
        int(caller.step(value, sequence_id, start=index == 0, end=index == last)[0, 0])
        for index, value in enumerate(values)
    ]


# Which requests are steps of which sequence.


@pytest.mark.parametrize("sequence_id", [None, 0, ""])
def test_without_an_id_a_recurrent_model_answers_whole_sequences(lstm, sequence_id):
    whole = lstm.step(STEPS, None)
    assert whole.shape == (1, recurrent_models.CLASSES)
    assert (lstm.step(STEPS, sequence_id) == whole).all()


@pytest.mark.parametrize("sequence_id", [None, 0, ""])
def test_a_model_with_controls_needs_an_id(caller, sequence_id):
    code, details = caller.error(1, sequence_id)
    assert (code, NO_ID in details) == ("INVALID_ARGUMENT", True), details


@pytest.mark.parametrize("flags", [{"start": True}, {"end": True}])
def test_a_start_or_an_end_needs_an_id(lstm, flags):
    code, details = lstm.error(STEPS, 0, **flags)
    assert (code, NO_ID in details) == ("INVALID_ARGUMENT", True), details


@pytest.mark.parametrize("kind", [int, str])
def test_each_step_is_answered_as_if_the_sequence_ended_there(lstm, new_id, kind):
    for index in range(STEPS.shape[1]):
        answer = lstm.step(
            STEPS[:, index : index + 1], kind(new_id), start=index == 0, end=index == 5
        )
        np.testing.assert_allclose(answer, lstm.step(STEPS[:, : index + 1], None), atol=1e-6)
    assert NO_START in lstm.error(STEPS[:, :1], kind(new_id))[1]


def test_a_step_may_have_several_steps_of_the_model(lstm, new_id):
    lstm.step(STEPS[:, :2], new_id, start=True)
    lstm.step(STEPS[:, 2:3], new_id)
    answer = lstm.step(STEPS[:, 3:], new_id, end=True)
    np.testing.assert_allclose(answer, lstm.step(STEPS, None), atol=1e-6)


def test_a_sequence_may_be_a_single_request(caller, new_id):
    assert caller.step(7, new_id, start=True, end=True).tolist() == [[7]]
    assert caller.error(1, new_id)[0] == "INVALID_ARGUMENT"
    assert send_all(caller, new_id) == [1, 3, 6]


ADVERSARIAL = [
    [1, "1"],
    [5, 5 + (2**61 - 1), 5 + 2 * (2**61 - 1)],  # of equal hashes
    [2**63 - 1, -(2**63), -1, -2],
    ["a", "a\0", "a\0b", "\0", " ", "a "],
    ["\u00e9", "e\u0301", "\U0001f600", "\u202e", "\ufeff"],
    ["x" * 1024, "x" * 1023 + "y"],
    ["0", "-0", "None", "(1, 2)", "'"],
]


@pytest.mark.parametrize("ids", ADVERSARIAL, ids=range(len(ADVERSARIAL)))
def test_different_ids_are_different_sequences(caller, ids):
    for number, each in enumerate(ids):
        assert caller.step(1000 * number, each, start=True).tolist() == [[1000 * number]]
    for number, each in enumerate(ids):
        assert caller.step(1, each).tolist() == [[1000 * number + 1]]
    for number, each in enumerate(ids):
        assert caller.step(2, each, end=True).tolist() == [[1000 * number + 3]]


def test_integers_are_unsigned(caller):
    caller.step(1, -7, start=True)
    message = caller.request(2, None)
    message.parameters["sequence_id"].uint64_param = 2**64 - 7
    message.parameters["sequence_end"].bool_param = True
    assert arrays(caller.stub.ModelInfer(message))["OUTPUT"].tolist() == [[3]]


@pytest.mark.parametrize(
    ("name", "field", "value", "text"),
    [
        ("sequence_id", "bool_param", True, "expected int64_param or string_param: it is a bool"),
        ("sequence_id", "double_param", 1.0, "invalid value type for 'sequence_id' parameter"),
        ("sequence_id", "string_param", "x" * 1025, "has 1025 bytes (expected at most 1024"),
        ("sequence_id", "string_param", "\u00e9" * 513, "has 1026 bytes (expected at most 1024"),
        ("sequence_start", "int64_param", 1, "invalid value type for 'sequence_start' parameter"),
        ("sequence_end", "string_param", "true", "expected bool_param: it is a string_param"),
    ],
)
def test_wrong_parameters_are_rejected(caller, new_id, name, field, value, text):
    message = caller.request(1, new_id, start=True)
    setattr(message.parameters[name], field, value)
    code, details = error_of(caller.stub.ModelInfer.future(message))
    assert (code, text in details) == ("INVALID_ARGUMENT", True), details
    assert len(details) < 500


def test_other_models_and_versions_have_other_sequences(sequence_server, caller, new_id):
    other = SequenceCaller(sequence_server, "other")
    assert caller.step(1, new_id, start=True).tolist() == [[1]]
    assert NO_START in other.error(1, new_id)[1]
    assert other.step(1, new_id, start=True).tolist() == [[10]]
    assert NO_START in caller.error(1, new_id, version="1")[1]
    assert caller.step(5, new_id, start=True, version="1").tolist() == [[5]]
    assert caller.step(1, new_id, end=True).tolist() == [[2]]
    assert caller.step(1, new_id, end=True, version="1").tolist() == [[6]]
    assert other.step(1, new_id, end=True).tolist() == [[20]]


SECRET = "{}-has-a-token-of-32-characters"  # noqa: S105
TOKENS = "".join(
    f"""
[[tokens]]
name = "{name}"
sha256 = "{hashlib.sha256(SECRET.format(name).encode()).hexdigest()}"
rights = ["predict"]
{more}
"""
    for name, more in (("ann", ""), ("ben", ""), ("eve", 'models = ["other"]'))
)


def test_callers_do_not_reach_the_sequences_of_others(open_server, tmp_path):
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS)
    tokens.chmod(0o600)
    server = open_server(options=ListenerOptions(1 << 20, access=Access(tokens)))
    ann, ben, eve = [
        SequenceCaller(
            server,
            metadata=[("authorization", f"Bearer {SECRET.format(name)}")],
        )
        for name in ("ann", "ben", "eve")
    ]
    assert ann.step(1, 7, start=True).tolist() == [[1]]
    assert NO_START in ben.error(2, 7)[1]
    assert eve.error(2, 7)[0] == "PERMISSION_DENIED"
    assert eve.error(2, 7, start=True)[0] == "PERMISSION_DENIED"
    assert ben.step(10, 7, start=True).tolist() == [[10]]
    assert ann.step(2, 7, end=True).tolist() == [[3]]
    assert ben.step(2, 7, end=True).tolist() == [[12]]


def test_a_model_without_a_state_has_no_sequences(sequence_server, new_id):
    caller = SequenceCaller(sequence_server, "both_ways", name="steps", datatype="FP32")
    for start in (True, False):
        code, details = caller.error(STEPS, new_id, start=start)
        assert code == "UNIMPLEMENTED"
        assert "reads sequences from their end" in details


def test_the_server_has_the_extension(sequence_server):
    metadata = sequence_server.triton.ServerMetadata(pb.ServerMetadataRequest())
    assert "sequence" in metadata.extensions


def test_an_unknown_model_is_said_to_be_unknown(sequence_server, new_id):
    caller = SequenceCaller(sequence_server, "none")
    for start in (True, False):
        code, details = caller.error(1, new_id, start=start)
        assert (code, "Request for unknown model" in details) == ("NOT_FOUND", True)


# How sequences begin and end.


def test_a_sequence_that_was_never_begun(caller, new_id):
    for end in (False, True):
        code, details = caller.error(1, new_id, end=end)
        assert code == "INVALID_ARGUMENT"
        assert details.startswith(f"inference request for sequence {new_id} to model 'accumulator'")
        assert NO_START in details
        assert "it has not begun here" in details


def test_a_sequence_that_has_ended(caller, new_id):
    send_all(caller, new_id)
    code, details = caller.error(1, new_id)
    assert (code, f"{NO_START}: it has ended" in details) == ("INVALID_ARGUMENT", True)


def test_a_sequence_begins_once(caller, new_id):
    caller.step(1, new_id, start=True)
    code, details = caller.error(5, new_id, start=True)
    assert code == "ALREADY_EXISTS"
    assert "has the START flag, but the sequence has begun and not ended (expected" in details
    assert caller.step(2, new_id, end=True).tolist() == [[3]]
    assert send_all(caller, new_id) == [1, 3, 6]


def test_a_sequence_expires(open_server, tmp_path):
    stateful_models.save_accumulator(
        tmp_path / "accumulator",
        batching=f"max_sequence_idle_microseconds: 800000 {flag('START')} {state()}",
    )
    stateful_models.save_accumulator(tmp_path / "other")
    server = open_server(tmp_path)
    caller = SequenceCaller(server)
    send_all(SequenceCaller(server, "other"), 5)  # whose sequences expire later
    caller.step(1, 5, start=True)
    for value in range(5):  # longer than the timeout, but never idle for so long
        time.sleep(0.2)
        caller.step(value, 5)
    wait_until(lambda: not len(server.sessions))
    code, details = caller.error(1, 5)
    assert code == "INVALID_ARGUMENT"
    assert NO_START in details
    assert "idle for 0.8 s (max_sequence_idle_microseconds of its config.pbtxt)" in details
    assert send_all(caller, 5) == [1, 3, 6]
    labels = {"model": "accumulator", "version": "1"}
    assert server.count("sessions_evicted_total", **labels, reason="idle") == 1
    assert server.count("sessions_open", **labels) == 0
    assert server.count("session_steps_total", **labels) == 9


def test_the_sequence_idle_longest_is_displaced(open_server):
    clock = [0.0]
    sessions = SessionStore(SessionLimits(max_sessions=2), lambda: clock[0])
    caller = SequenceCaller(open_server(sessions=sessions))
    for number in (1, 2):
        caller.step(number, number, start=True)
        clock[0] += 1
    code, details = caller.error(3, 3, start=True)
    assert code == "RESOURCE_EXHAUSTED"
    assert "too many sessions: 2 are open and in use" in details
    clock[0] += 100
    caller.step(10, 1)
    caller.step(3, 3, start=True)
    code, details = caller.error(2, 2)
    assert (code, NO_START in details) == ("INVALID_ARGUMENT", True)
    assert "displaced: of 2 it was idle longest (the option max_sessions)" in details
    assert caller.step(1, 1).tolist() == [[12]]
    assert caller.step(1, 3).tolist() == [[4]]


def test_a_state_is_not_that_of_a_sequence_before(lstm, new_id):
    lstm.step(1000 * STEPS, new_id, start=True)
    assert (lstm.step(STEPS, new_id, end=True) != lstm.step(STEPS, None)).all()
    answer = lstm.step(STEPS, new_id, start=True, end=True)
    np.testing.assert_allclose(answer, lstm.step(STEPS, None), atol=1e-6)


# Several steps at once.


def test_steps_behind_the_last_one_belong_to_no_sequence(caller, new_id):
    messages = [
        caller.request(1, new_id, start=True),
        caller.request(2, new_id, end=True),
        caller.request(3, new_id),
        caller.request(4, new_id, end=True),
        caller.request(5, new_id, start=True, end=True),
        caller.request(6, new_id),
    ]
    answers = list(caller.stream(messages))
    assert [answers[index].tolist() for index in (0, 1, 4)] == [[[1]], [[3]], [[5]]]
    for index in (2, 3, 5):
        assert NO_START in answers[index]


def test_steps_in_a_stream_need_not_wait_for_each_other(caller, new_id):
    messages = [
        caller.request(1, f"{new_id} {number}", start=index == 0, end=index == 99)
        for index in range(100)
        for number in range(5)
    ]
    answers = [int(answer[0, 0]) for answer in caller.stream(messages)]
    assert answers == [index + 1 for index in range(100) for _ in range(5)]


def test_an_id_is_used_again_before_the_answer_to_its_end(caller, new_id):
    messages = [
        caller.request(value, new_id, start=value == 1, end=value == 3)
        for _ in range(30)
        for value in (1, 2, 3)
    ]
    assert [int(answer[0, 0]) for answer in caller.stream(messages)] == [1, 3, 6] * 30


@pytest.fixture
def waiting_server(open_server):
    """A server whose accumulator runs nothing before `start` is called."""
    server = open_server(start_models=False)
    server.begin = lambda: server.registry.resolve("accumulator").start()
    server.caller = SequenceCaller(server)
    return server


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def send_steps(server, count, sequence_id=5):
    """Send steps at once, in their order: return the calls once the server has all."""
    caller, calls = SequenceCaller(server), []
    for index in range(count):
        calls.append(caller.start_step(index + 1, sequence_id, start=index == 0))
        wait_until(lambda number=index + 1: arrived_steps(server) == number)
    return calls


def arrived_steps(server):
    of_owners = server.sessions._sessions.values()
    return sum([session.arrived_steps for sessions in [*of_owners] for session in [*sessions]])


def test_steps_at_once_run_in_their_order(waiting_server):
    calls = send_steps(waiting_server, 20)
    waiting_server.begin()
    answers = [int(output_of(call.result())[0, 0]) for call in calls]
    assert answers == np.cumsum(np.arange(1, 21)).tolist()


def test_a_step_that_waits_is_cancelled(waiting_server):
    calls = send_steps(waiting_server, 5)
    calls[2].cancel()
    cancelled = {"model": "accumulator", "version": "1", "outcome": "cancelled"}
    wait_until(lambda: waiting_server.count("requests_total", **cancelled) == 1)
    waiting_server.begin()
    assert [output_of(call.result()).tolist() for call in calls[:2]] == [[[1]], [[3]]]
    for call in calls[3:]:
        code, details = error_of(call)
        assert code == "ABORTED"
        assert "step of sequence 5 not run: one before it failed or was cancelled" in details
    assert waiting_server.caller.step(3, 5).tolist() == [[6]]


def test_a_step_that_was_cancelled_is_sent_again_while_others_wait(waiting_server):
    """Only the steps that arrived before the cancellation fail."""
    calls = send_steps(waiting_server, 4)
    calls[1].cancel()
    cancelled = {"model": "accumulator", "version": "1", "outcome": "cancelled"}
    wait_until(lambda: waiting_server.count("requests_total", **cancelled) == 1)
    again = [waiting_server.caller.start_step(value, 5) for value in (2, 3)]
    wait_until(lambda: arrived_steps(waiting_server) == 6)
    waiting_server.begin()
    assert output_of(calls[0].result()).tolist() == [[1]]
    assert [error_of(call)[0] for call in calls[2:]] == ["ABORTED"] * 2
    assert sorted(output_of(call.result()).item() for call in again) in ([3, 6], [4, 6])


def test_a_step_in_flight_is_cancelled(open_server, tmp_path):
    """Its neighbour in the batch is not, and the state is as before."""
    delay = "oldest { max_queue_delay_microseconds: 150000 }"
    stateful_models.save_accumulator(
        tmp_path / "accumulator", batching=f"{delay} {flag('START')} {state()}"
    )
    server = open_server(tmp_path)
    caller = SequenceCaller(server)
    for call in [caller.start_step(value, value, start=True) for value in (1, 100)]:
        call.result()
    call, neighbour = caller.start_step(2, 1), caller.start_step(200, 100)
    queue = server.registry.resolve("accumulator").batcher.queue
    wait_until(lambda: queue.rows == 2)
    call.cancel()
    assert output_of(neighbour.result()).tolist() == [[300]]
    assert caller.step(3, 1).tolist() == [[4]]


def test_the_first_step_is_cancelled(waiting_server):
    calls = send_steps(waiting_server, 3)
    calls[0].cancel()
    for call in calls[1:]:
        assert error_of(call)[0] == "ABORTED"
    waiting_server.begin()
    caller = waiting_server.caller
    assert "its first step failed" in caller.error(2, 5)[1]
    assert send_all(caller, 5) == [1, 3, 6]


def test_a_stream_that_is_cancelled_leaves_others_alone(waiting_server):
    caller = waiting_server.caller
    messages = [caller.request(1, 5, start=index == 0) for index in range(10)]
    stream = caller.stub.ModelStreamInfer(iter(messages), timeout=20)
    wait_until(lambda: len(waiting_server.sessions) == 1)
    call = caller.start_step(1, 6, start=True)
    wait_until(lambda: len(waiting_server.sessions) == 2)
    stream.cancel()
    wait_until(lambda: len(waiting_server.sessions) == 1)
    waiting_server.begin()
    assert output_of(call.result()).tolist() == [[1]]
    assert NO_START in caller.error(1, 5)[1]


def test_a_server_that_stops_answers_the_steps_that_it_has(open_server):
    server = open_server(start_models=False)
    calls = send_steps(server, 10)
    stopping = threading.Thread(target=server.listener.stop, args=(20.0,))
    stopping.start()
    time.sleep(0.1)
    server.registry.resolve("accumulator").start()
    answers = [int(output_of(call.result())[0, 0]) for call in calls]
    stopping.join()
    assert answers == np.cumsum(np.arange(1, 11)).tolist()
    assert SequenceCaller(server).error(1, 5)[0] == "UNAVAILABLE"


def test_a_model_is_freed_once_its_sequences_have_ended(open_server, without_collector):
    """And without the garbage collector, also after errors."""
    server = open_server(explicit=True, load_model=["accumulator"], session_drain=0.0)
    model = weakref.ref(server.registry.resolve("accumulator"))
    caller = SequenceCaller(server)
    caller.step(1, 5, start=True)
    assert caller.error([[1, 2]], 5)[0] == "INVALID_ARGUMENT"
    server.models.Unload(UnloadModelRequest(model="accumulator"), timeout=20)
    wait_until(lambda: without_collector() or model() is None)
    assert not len(server.sessions)


def test_a_failed_step_leaves_the_state(caller, new_id):
    caller.step(1, new_id, start=True)
    assert caller.error([[1, 2]], new_id)[0] == "INVALID_ARGUMENT"
    assert caller.error([[1], [2]], new_id)[0] == "INVALID_ARGUMENT"
    assert caller.error([[1, 2]], new_id, end=True)[0] == "INVALID_ARGUMENT"
    assert caller.step(2, new_id).tolist() == [[3]]
    assert caller.step(3, new_id, end=True).tolist() == [[6]]


def test_a_first_step_that_fails_begins_nothing(caller, new_id):
    assert caller.error([[1, 2]], new_id, start=True)[0] == "INVALID_ARGUMENT"
    code, details = caller.error(1, new_id)
    assert (code, f"{NO_START}: its first step failed" in details) == ("INVALID_ARGUMENT", True)
    assert send_all(caller, new_id) == [1, 3, 6]


def test_a_failed_end_of_a_sequence_whose_id_is_in_use_again(waiting_server):
    """The old sequence is over then."""
    caller = waiting_server.caller
    messages = [
        caller.request(1, 5, start=True),
        caller.request([[1, 2]], 5, end=True),
        caller.request(10, 5, start=True),
        caller.request(20, 5),
    ]
    answers = caller.stub.ModelStreamInfer(iter(messages), timeout=20)
    wait_until(lambda: len(waiting_server.sessions) == 2)
    waiting_server.begin()
    first, failed, *others = list(answers)
    assert output_of(first.infer_response).tolist() == [[1]]
    assert "unexpected shape" in failed.error_message
    assert [output_of(other.infer_response).tolist() for other in others] == [[[10]], [[30]]]
    assert len(waiting_server.sessions) == 1
    assert caller.step(1, 5, end=True).tolist() == [[31]]
    assert not len(waiting_server.sessions)


def test_sequences_share_runs(waiting_server):
    """And no step has the state of another one."""
    caller = waiting_server.caller
    waiting_server.begin()
    for number in range(8):
        caller.step(100 * number, number + 1, start=True)
    runs = {"model": "accumulator", "version": "1"}
    before = waiting_server.count("batch_rows_count", **runs)
    for step in range(1, 6):
        calls = [caller.start_step(step, number + 1) for number in range(8)]
        expected = [100 * number + sum(range(step + 1)) for number in range(8)]
        assert [int(output_of(call.result())[0, 0]) for call in calls] == expected
    assert waiting_server.count("batch_rows_count", **runs) - before <= 40


# Versions.


def test_a_sequence_stays_on_its_version(open_server, tmp_path):
    folder = stateful_models.save_accumulator(tmp_path / "accumulator")
    server = open_server(tmp_path)
    caller = SequenceCaller(server)
    caller.step(1, 5, start=True)
    stateful_models.save_accumulator(folder, version=2, scale=10)

    def has_version_2():
        server.reconciler.poll_once()
        return server.registry.resolve("accumulator").version == 2

    wait_until(has_version_2)
    assert caller.step(1, 6, start=True).tolist() == [[10]]
    message = caller.request(2, 5)
    response = caller.stub.ModelInfer(message)
    assert (response.model_version, output_of(response).tolist()) == ("1", [[3]])
    assert caller.step(3, 5, end=True).tolist() == [[6]]
    assert caller.step(3, 5, start=True).tolist() == [[30]]


# Rows.


def test_a_step_may_have_several_rows(caller, new_id):
    assert caller.step([[1], [10]], new_id, start=True).tolist() == [[1], [10]]
    assert caller.step([[2], [20]], new_id).tolist() == [[3], [30]]
    for values in ([[1]], [[1], [2], [3]]):
        code, details = caller.error(values, new_id)
        assert code == "INVALID_ARGUMENT"
        assert f"the step has {len(values)} rows (expected 2" in details
    assert caller.step([[3], [30]], new_id, end=True).tolist() == [[6], [60]]


def test_a_step_of_a_recurrent_model_may_have_several_rows(lstm, new_id):
    rows = np.concatenate([STEPS, -STEPS, 2 * STEPS])
    lstm.step(rows[:, :4], new_id, start=True)
    code, details = lstm.error(rows[:2, 4:], new_id)
    assert (code, "row count changed: the step has 2 rows (expected 3" in details) == (
        "INVALID_ARGUMENT",
        True,
    )
    answer = lstm.step(rows[:, 4:], new_id, end=True)
    np.testing.assert_allclose(answer, lstm.step(rows, None), atol=1e-6)


def test_a_model_without_a_batch_axis(sequence_server, new_id):
    caller = SequenceCaller(sequence_server, "single")
    assert caller.step([1], new_id, start=True).tolist() == [1]
    assert caller.step([2], new_id, end=True).tolist() == [3]


# What configurations declare.


@pytest.mark.parametrize("sequence_id", [1, 2**40, -1])
def test_the_model_gets_the_id(sequence_server, sequence_id):
    caller = SequenceCaller(sequence_server, "numbered")
    assert caller.step(1, sequence_id, start=True).tolist() == [[2]]
    expected = np.array([sequence_id]).astype(np.int32)[0]
    assert caller.step(0, sequence_id, end=True).tolist() == [[expected]]


def test_an_id_that_the_model_cannot_take(sequence_server):
    caller = SequenceCaller(sequence_server, "numbered")
    code, details = caller.error(1, "seven", start=True)
    assert code == "INVALID_ARGUMENT"
    assert "parameter 'sequence_id' is 'seven' (expected an integer from 0 to 184467" in details


def test_callers_neither_see_nor_send_what_the_server_fills_in(sequence_server, caller, new_id):
    name = {"name": "accumulator"}
    metadata = sequence_server.triton.ModelMetadata(pb.ModelMetadataRequest(**name))
    config = sequence_server.triton.ModelConfig(pb.ModelConfigRequest(**name)).config
    for described in (metadata.inputs, config.input):
        assert [tensor.name for tensor in described] == ["INPUT"]
    for described in (metadata.outputs, config.output):
        assert [tensor.name for tensor in described] == ["OUTPUT"]
    message = caller.request(1, new_id, start=True)
    extra = request("", PAST=("INT32", [[1]]))
    message.MergeFrom(pb.ModelInferRequest(inputs=extra.inputs))
    message.raw_input_contents.extend(extra.raw_input_contents)
    code, details = error_of(caller.stub.ModelInfer.future(message))
    assert (code, "unexpected inference input 'PAST'" in details) == ("INVALID_ARGUMENT", True)
    message = caller.request(1, new_id, start=True)
    message.outputs.add(name="NEXT")
    code, details = error_of(caller.stub.ModelInfer.future(message))
    assert (
        "unexpected inference output 'NEXT' for model 'accumulator' (expected 'OUTPUT'" in details
    )
    missing = step_request("accumulator", [[1]], new_id, start=True, name="WRONG")
    code, details = error_of(caller.stub.ModelInfer.future(missing))
    assert (code, "PAST" not in details.split(":")[0]) == ("INVALID_ARGUMENT", True), details


def test_the_config_of_a_recurrent_model_has_sequences(sequence_server):
    config = sequence_server.triton.ModelConfig(pb.ModelConfigRequest(name="lstm")).config
    assert config.WhichOneof("scheduling_choice") == "sequence_batching"
    assert config.sequence_batching.max_sequence_idle_microseconds == 300_000_000
    assert config.sequence_batching.oldest.max_candidate_sequences == 16384
    config = sequence_server.triton.ModelConfig(pb.ModelConfigRequest(name="both_ways")).config
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"


def initial(more, dims=1, data_type="TYPE_INT32"):
    return f'initial_state {{ name: "first" data_type: {data_type} dims: [ {dims} ] {more} }}'


def test_the_state_begins_as_the_file_says(open_server, tmp_path):
    folder = tmp_path / "accumulator"
    never = flag("START", "int32_false_true: [ 0, 0 ]")
    first = initial('data_file: "first"')
    batching = f"{never} {state(more=first)}"
    (folder / "initial_state").mkdir(parents=True)
    (folder / "initial_state" / "first").write_bytes(np.int32(100).tobytes())
    stateful_models.save_accumulator(folder, batching=batching)
    caller = SequenceCaller(open_server(tmp_path))
    assert caller.step([[1], [2]], 5, start=True).tolist() == [[101], [102]]
    assert caller.step([[1], [2]], 5, end=True).tolist() == [[102], [104]]
    assert caller.step(1, 5, start=True).tolist() == [[101]]


def test_the_state_is_an_output_if_the_config_lists_it(open_server, tmp_path):
    stateful_models.save_accumulator(
        tmp_path / "accumulator",
        more='output [ { name: "NEXT" data_type: TYPE_INT32 dims: [ 1 ] } ]',
    )
    caller = SequenceCaller(open_server(tmp_path))
    response = caller.stub.ModelInfer(caller.request(1, 5, start=True))
    assert {name: array.tolist() for name, array in arrays(response).items()} == {
        "OUTPUT": [[1]],
        "NEXT": [[1]],
    }


@pytest.mark.parametrize("datatype", ["BYTES", "FP64"])
def test_states_of_any_type_and_size(open_server, tmp_path, datatype):
    """A state that is longer after each step: NEXT is PAST with INPUT appended."""
    kind = onnx_models.ECHOED[datatype]
    onnx_models.save(
        tmp_path / "history" / "1" / "model.onnx",
        [
            onnx_models.helper.make_node("Concat", ["PAST", "INPUT"], ["NEXT"], axis=1),
            onnx_models.helper.make_node("Identity", ["NEXT"], ["OUTPUT"]),
        ],
        {"INPUT": (kind, ["batch", 1]), "PAST": (kind, ["batch", "past"])},
        {"OUTPUT": (kind, ["batch", "next"]), "NEXT": (kind, ["batch", "next"])},
    )
    data_type = "TYPE_STRING" if datatype == "BYTES" else "TYPE_FP64"
    config = (
        f'input [ {{ name: "INPUT" data_type: {data_type} dims: [ 1 ] }} ] '
        f'output [ {{ name: "OUTPUT" data_type: {data_type} dims: [ -1 ] }} ] '
        f"sequence_batching {{ {state(data_type, -1)} }}"
    )
    (tmp_path / "history" / "config.pbtxt").write_text(f"max_batch_size: 8\n{config}")
    caller = SequenceCaller(open_server(tmp_path), "history", datatype=datatype)
    values, empty = ([b"a", b"b\0", b""], b"") if datatype == "BYTES" else ([1.5, 2.5, 0.5], 0.0)
    expected = [empty]
    for index, value in enumerate(values):
        expected.append(value)
        assert caller.step([[value]], 5, start=index == 0).tolist() == [expected]
        assert caller.step([[value]], f"other {index}", start=True).tolist() == [[empty, value]]


def test_the_deadline_of_a_step_that_waits(waiting_server):
    """A step whose deadline passes while it waits is not run."""
    calls = send_steps(waiting_server, 1)
    message = waiting_server.caller.request(2, 5)
    with pytest.raises(grpc.RpcError) as caught:
        waiting_server.caller.stub.ModelInfer(message, timeout=0.1)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    waiting_server.begin()
    assert output_of(calls[0].result()).tolist() == [[1]]
    assert waiting_server.caller.step(2, 5).tolist() == [[3]]


@pytest.mark.parametrize("batched", [True, False])
def test_a_recurrent_model_with_its_state_as_tensors(open_server, tmp_path, batched):
    """Steps of different lengths of different sequences run at once, and are cut as they should."""
    stateful_models.save_gru(tmp_path / "gru", batched=batched)
    caller = SequenceCaller(open_server(tmp_path), "gru", datatype="FP32")
    random = np.random.default_rng(1)
    sequences = random.standard_normal((6, 1, 30, 3), np.float32)
    whole = [caller.step(steps, f"whole {n}", start=True) for n, steps in enumerate(sequences)]
    ends = np.sort(random.permuted(np.tile(np.arange(1, 30), (6, 1)), axis=1)[:, :8])
    positions = [0] * 6
    for turn in range(8):
        calls = [
            caller.start_step(steps[:, positions[n] : ends[n, turn]], n + 1, start=turn == 0)
            for n, steps in enumerate(sequences)
        ]
        for n, call in enumerate(calls):
            expected = whole[n][:, positions[n] : ends[n, turn]]
            np.testing.assert_allclose(output_of(call.result()), expected, atol=1e-5)
            positions[n] = ends[n, turn]


def test_steps_share_runs_with_whole_sequences(lstm):
    """Of other lengths: neither gets the state of the other."""
    whole = [lstm.step(STEPS[:, :count], None) for count in range(1, 7)]
    for number in range(4):
        lstm.step(STEPS[:, :2], f"mixed {number}", start=True)
    calls = []
    for number in range(4):
        calls.append((lstm.start_step(STEPS[:, 2 : 3 + number], f"mixed {number}"), 2 + number))
        calls += [(lstm.start_step(STEPS[:, :count], None), count - 1) for count in range(1, 7)]
    for call, index in calls:
        np.testing.assert_allclose(output_of(call.result()), whole[index], atol=1e-5)


def test_a_replaced_version_waits_for_its_sequences(open_server, tmp_path):
    folder = stateful_models.save_accumulator(tmp_path / "accumulator")
    server = open_server(tmp_path, every=False)
    caller = SequenceCaller(server)
    caller.step(1, 5, start=True)
    before = server.registry.resolve("accumulator")
    stateful_models.save_accumulator(folder, version=2, scale=10)

    def is_replaced():
        server.reconciler.poll_once()
        return server.registry.resolve("accumulator").version == 2

    wait_until(is_replaced)
    assert caller.step(1, 6, start=True, end=True).tolist() == [[10]]
    assert caller.step(2, 5).tolist() == [[3]]
    assert caller.step(3, 5, end=True).tolist() == [[6]]
    wait_until(lambda: before.batcher.queue.closed)
    assert caller.step(3, 5, start=True).tolist() == [[30]]
