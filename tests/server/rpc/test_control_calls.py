"""Calls that load and unload models: a bounded number, whatever their callers do."""

import threading
from concurrent.futures import Future

import grpc
import pytest

from neurona_protos import open_inference_pb2 as pb
from neurona_protos.prediction_pb2 import LoadModelRequest, UnloadModelRequest
from neurona_server.errors import NotFoundError, quoted
from neurona_server.rpc.control_calls import MAX_CALLS, MAX_THREADS


class Control:
    """Loads that end when the test ends their future; all but "endless" have ended already."""

    def __init__(self):
        self.calls = []
        self.endless = Future()
        self.ended = Future()
        self.ended.set_result(None)
        self.scans = threading.Semaphore(10**6)
        """How many loads may start."""

    def load(self, name):
        assert self.scans.acquire(timeout=30)
        self.calls.append(("load", name))
        if name == "nobody":
            raise NotFoundError(f"there is no model {quoted(name)}")
        return self.endless if name == "endless" else self.ended

    def unload(self, name):
        self.calls.append(("unload", name))
        return self.ended


@pytest.fixture
def control():
    return Control()


@pytest.fixture
def controlled(make_server, control):
    return make_server(control=control)


def load_v1(server, name, timeout=30):
    return server.models.Load.future(LoadModelRequest(model=name), timeout=timeout)


def load_open(server, name, timeout=30):
    message = pb.RepositoryModelLoadRequest(model_name=name)
    return server.triton.RepositoryModelLoad.future(message, timeout=timeout)


def control_threads():
    return [thread for thread in threading.enumerate() if thread.name == "control"]


@pytest.mark.parametrize("load", [load_v1, load_open])
def test_calls_that_wait_for_a_load_hold_no_thread(controlled, control, wait_until, load):
    calls = [load(controlled, "endless") for _ in range(MAX_CALLS)]
    wait_until(lambda: controlled.control_calls.pending_count == MAX_CALLS)
    wait_until(lambda: not control_threads())
    assert load_open(controlled, "classifier").code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    rejected = load_v1(controlled, "classifier")
    assert rejected.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"{MAX_CALLS} loads and unloads are waiting" in rejected.details()
    control.endless.set_exception(NotFoundError("the model is gone"))
    assert {call.code() for call in calls} == {grpc.StatusCode.NOT_FOUND}
    assert load_v1(controlled, "classifier").code() == grpc.StatusCode.OK
    assert controlled.control_calls.pending_count == 0


def test_both_protocols_share_the_bound_and_callers_that_leave_free_it(
    controlled, control, wait_until
):
    calls = [load_open(controlled, "endless") for _ in range(MAX_CALLS - 1)]
    calls.append(load_v1(controlled, "endless"))
    wait_until(lambda: controlled.control_calls.pending_count == MAX_CALLS)
    assert load_v1(controlled, "classifier").code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls[1:]:
        call.cancel()
    late = load_v1(controlled, "endless", timeout=0.2)
    assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: controlled.control_calls.pending_count == 1)
    assert load_v1(controlled, "classifier").code() == grpc.StatusCode.OK
    control.endless.set_result(None)
    assert calls[0].code() == grpc.StatusCode.OK
    assert controlled.control_calls.pending_count == 0


def test_calls_that_have_not_started_are_shared_and_may_leave(controlled, control, wait_until):
    control.scans = threading.Semaphore(0)  # as for a volume that hangs
    started = [load_v1(controlled, f"m{number}") for number in range(MAX_THREADS)]
    wait_until(lambda: controlled.control_calls.pending_count == MAX_THREADS)
    wait_until(lambda: not controlled.control_calls._waiting)
    assert len(control_threads()) == MAX_THREADS
    same = [load(controlled, "nobody") for load in (load_v1, load_open) for _ in range(5)]
    left = [load_v1(controlled, f"left{number}") for number in range(20)]
    wait_until(lambda: controlled.control_calls.pending_count == MAX_THREADS + 30)
    assert len(control_threads()) == MAX_THREADS
    for call in left:
        call.cancel()
    wait_until(lambda: controlled.control_calls.pending_count == MAX_THREADS + 10)
    control.scans.release(10**6)
    assert {call.code() for call in same} == {grpc.StatusCode.NOT_FOUND}
    for call in started:
        call.exception()  # the registry has none of these models, so that the response fails
    wait_until(lambda: not control_threads())
    assert control.calls.count(("load", "nobody")) == 1
    assert not [name for _, name in control.calls if name.startswith("left")]
    controlled.models.Unload(UnloadModelRequest(model="m0"), timeout=10)
    assert control.calls[-1] == ("unload", "m0")


def test_a_thread_that_the_system_refuses_is_not_counted(controlled, control, monkeypatch):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "control":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        for _ in range(MAX_THREADS):
            assert load_v1(controlled, "classifier").code() == grpc.StatusCode.INTERNAL
    assert load_v1(controlled, "classifier", timeout=5).code() == grpc.StatusCode.OK
    assert controlled.control_calls.pending_count == 0
