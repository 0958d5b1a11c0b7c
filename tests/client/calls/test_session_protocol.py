"""The messages of a session, without a server: nothing is lost or computed twice into its state."""

import random

import numpy as np
import pytest
from support.session_server import pack_state, unpack_state

from neurona_client.calls.session_protocol import (
    PendingSteps,
    SessionAnswer,
    SessionEndingError,
    SessionProtocol,
    encode_steps,
)
from neurona_client.calls.steps import Deadline
from neurona_client.errors import (
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    ServerError,
    UnavailableError,
)
from neurona_client.request_templates import RequestOptions
from neurona_protos.prediction_pb2 import (
    DATA_TYPE_FLOAT,
    Error,
    PredictResponse,
    Regression,
    RegressionRow,
    SessionRequest,
    SessionResponse,
)
from neurona_protos.tensors import to_array

OPTIONS = RequestOptions("sum", None, "stable", 3, True, "high")


def add_steps(protocol, values):
    array = np.array(values, np.float32).reshape(1, -1, 1)
    message_id = protocol.next_id()
    message = encode_steps([("x", DATA_TYPE_FLOAT, array)], message_id)
    protocol.add(PendingSteps(message_id, message, False, Deadline(None)))


def next_request(protocol):
    message = protocol.next_message()
    return None if message is None else SessionRequest.FromString(message)


class Adder:
    """What a server does with the messages of one stream."""

    def __init__(self):
        self.is_started = False
        self.steps, self.sum = 0, 0.0

    def answer(self, request, error=None):
        if not self.is_started:
            self.is_started = True
            if request.start.state:
                _, self.steps, (self.sum,) = unpack_state(request.start.state)
        if error is not None:
            return SessionResponse(id=request.id, error=error, steps=self.steps)
        if not request.inputs:
            return SessionResponse(id=request.id, steps=self.steps)
        values = to_array(request.inputs[0])
        self.steps += values.shape[1]
        self.sum += float(values.sum())
        response = PredictResponse(
            model="sum", version=7, regression=Regression(rows=[RegressionRow(values=[self.sum])])
        )
        state = pack_state(7, self.steps, [self.sum])
        return SessionResponse(id=request.id, response=response, state=state, steps=self.steps)


def deliver(protocol, response):
    return protocol.on_message(response.SerializeToString())


@pytest.fixture
def protocol():
    return SessionProtocol(OPTIONS, b"")


@pytest.fixture
def begun(protocol):
    """A protocol and the server that has confirmed its beginning."""
    server = Adder()
    assert deliver(protocol, server.answer(next_request(protocol))) is None
    return protocol, server


def test_the_beginning_says_what_is_asked_and_a_new_one_where_it_goes_on(begun):
    protocol, server = begun
    protocol.restart()
    first = next_request(protocol)
    assert (first.start.model, first.start.label, first.start.WhichOneof("which")) == (
        "sum",
        "stable",
        "label",
    )
    assert (first.start.top_k, first.start.raw_outputs, first.start.priority) == (3, True, 1)
    assert not first.start.state
    assert deliver(protocol, server.answer(first)) is None
    add_steps(protocol, [1, 2])
    answer = deliver(protocol, server.answer(next_request(protocol)))
    assert (answer.outcome.value, answer.steps) == (3.0, 2)
    protocol.restart()
    start = next_request(protocol).start
    assert (start.version, start.state) == (7, answer.state)  # no other version can take the state


def test_steps_are_sent_in_order_and_once(begun):
    protocol, _ = begun
    assert next_request(protocol) is None
    for values in ([1], [2], [3]):
        add_steps(protocol, values)
    sent = [next_request(protocol) for _ in range(3)]
    assert [to_array(one.inputs[0]).sum() for one in sent] == [1, 2, 3]
    assert all(one.return_state and not one.HasField("start") for one in sent)
    assert next_request(protocol) is None


def test_steps_without_an_answer_are_sent_again_from_the_last_state(begun):
    protocol, server = begun
    for values in ([1], [2], [3]):
        add_steps(protocol, values)
    first = deliver(protocol, server.answer(next_request(protocol)))
    server.answer(next_request(protocol))  # computed, and the answer is lost
    protocol.restart()
    other = Adder()
    assert deliver(protocol, other.answer(next_request(protocol))) is None
    answers = [deliver(protocol, other.answer(next_request(protocol))) for _ in range(2)]
    assert [one.outcome.value for one in (first, *answers)] == [1.0, 3.0, 6.0]
    assert not protocol.unanswered
    assert protocol.unanswered_bytes == 0


def test_an_error_is_the_answer_of_its_steps_and_leaves_the_state(begun):
    protocol, server = begun
    for values in ([1], [2], [3]):
        add_steps(protocol, values)
    first = deliver(protocol, server.answer(next_request(protocol)))
    error = Error(code=3, message="input 'x' has NaN")
    second = deliver(protocol, server.answer(next_request(protocol), error))
    third = deliver(protocol, server.answer(next_request(protocol)))
    assert isinstance(second.outcome, InvalidInputError)
    assert (second.state, second.steps) == (first.state, first.steps)
    assert third.outcome.value == 4.0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Error(code=8, message="queue is full", retry_after_ms=5), OverloadedError),
        (Error(code=14, message="model is being unloaded"), UnavailableError),
    ],
)
def test_steps_that_another_attempt_may_compute_are_kept(begun, error, kind):
    protocol, server = begun
    add_steps(protocol, [1])
    assert isinstance(deliver(protocol, server.answer(next_request(protocol), error)), kind)
    assert len(protocol.unanswered) == 1


def test_an_overload_that_does_not_pass_is_an_answer(begun):
    protocol, server = begun
    add_steps(protocol, [1])
    error = Error(code=8, message="response is too large")
    answer = deliver(protocol, server.answer(next_request(protocol), error))
    assert isinstance(answer.outcome, OverloadedError)


def test_an_error_of_the_beginning_is_about_the_session(protocol):
    add_steps(protocol, [1])
    start = next_request(protocol)
    error = Error(code=5, message="model 'sum' not found")
    assert isinstance(deliver(protocol, Adder().answer(start, error)), NotFoundError)
    assert len(protocol.unanswered) == 1


def test_an_ending_leaves_the_last_answered_state(begun):
    protocol, server = begun
    add_steps(protocol, [1])
    add_steps(protocol, [2])
    answer = deliver(protocol, server.answer(next_request(protocol)))
    next_request(protocol)
    ending = SessionResponse(ending="server stops", state=answer.state, steps=1)
    outcome = deliver(protocol, ending)
    assert isinstance(outcome, SessionEndingError)
    assert "server stops" in str(outcome)
    assert protocol.state == answer.state
    assert len(protocol.unanswered) == 1


def test_a_state_that_was_given_is_where_the_session_begins():
    state = pack_state(7, 5, [10.0])
    protocol = SessionProtocol(OPTIONS, state)
    server = Adder()
    assert deliver(protocol, server.answer(next_request(protocol))) is None
    add_steps(protocol, [1])
    answer = deliver(protocol, server.answer(next_request(protocol)))
    assert (answer.outcome.value, answer.steps) == (11.0, 6)


@pytest.mark.parametrize(
    "message",
    [
        b"\xff",
        SessionResponse(id=99, response=PredictResponse()).SerializeToString(),
        SessionResponse(id=2, response=PredictResponse(), steps=1).SerializeToString(),
    ],
    ids=["no message", "unknown id", "no state"],
)
def test_a_response_that_cannot_be_is_an_error_of_the_server(begun, message):
    protocol, _ = begun
    add_steps(protocol, [1])
    next_request(protocol)
    assert isinstance(protocol.on_message(message), ServerError)
    assert len(protocol.unanswered) == 1


@pytest.mark.parametrize("seed", range(30))
def test_any_losses_and_errors_give_the_sums_of_the_steps_that_were_answered(protocol, seed):
    """Steps are sent, computed, answered, refused, given up and lost in any order."""
    chance = random.Random(seed)  # noqa: S311
    server, in_flight, responses = Adder(), [], []
    values, answers, given_up = [], [], set()

    def receive(outcome):
        if isinstance(outcome, SessionAnswer):
            answers.append(outcome)
        else:
            assert outcome is None

    for _ in range(400):
        action = chance.choice(["add", "send", "send", "compute", "compute", "answer", "lose"])
        if action == "add" and len(values) < 100:
            values.append(float(chance.randint(1, 9)))
            add_steps(protocol, [values[-1]])
        elif action == "send" and (request := next_request(protocol)) is not None:
            in_flight.append(request)
        elif action == "compute" and in_flight:
            request = in_flight.pop(0)
            refused = request.inputs and chance.random() < 0.1
            error = Error(code=3, message="refused") if refused else None
            responses.append(server.answer(request, error))
        elif action == "answer" and responses:
            receive(deliver(protocol, responses.pop(0)))
        elif action == "lose" and chance.random() < 0.3:
            if protocol.unanswered and chance.random() < 0.3:
                given_up.add(len(answers))
                protocol.remove_first()
                answers.append(None)
            protocol.restart()
            server, in_flight, responses = Adder(), [], []
    while protocol.unanswered:
        request = next_request(protocol)
        if request is not None:
            in_flight.append(request)
        while in_flight:
            responses.append(server.answer(in_flight.pop(0)))
        while responses:
            receive(deliver(protocol, responses.pop(0)))
    assert len(answers) == len(values) > 20
    total = steps = 0
    for value, answer in zip(values, answers, strict=True):
        if answer is None or isinstance(answer.outcome, InvalidInputError):
            continue
        total, steps = total + value, steps + 1
        assert (answer.outcome.value, answer.steps) == (total, steps)
