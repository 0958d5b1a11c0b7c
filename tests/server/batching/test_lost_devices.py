"""Devices that are lost while a model runs on them, with puppets as the model on each."""

import contextlib
import threading
import time

import pytest
from prometheus_client import CollectorRegistry
from support.fakes import FakeRequest, Puppet, PuppetBatcher, SubmittedRequest

from neurona_server.batching import batcher as batcher_module
from neurona_server.batching.batch import Batch
from neurona_server.batching.batcher import Batcher
from neurona_server.batching.device_scheduler import DeviceScheduler, ModelRuns
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.watchdog import RunWatchdog
from neurona_server.errors import DeviceLostError, ModelFailedError
from neurona_server.telemetry.metrics import Metrics

WAIT = 10.0
ILLEGAL_ADDRESS = "CUDA error 700: an illegal memory access was encountered"


class WaitingRequest(SubmittedRequest):
    def __init__(self, *arguments, **options):
        self.done = threading.Event()
        super().__init__(*arguments, **options)

    def finish(self, outputs, error):
        super().finish(outputs, error)
        self.done.set()

    @property
    def answer(self):
        assert self.done.wait(WAIT), "no answer"
        return super().answer


def lose(device):
    def run(_):
        raise DeviceLostError(device, ILLEGAL_ADDRESS)

    return Puppet(before=run)


class Hanging(Puppet):
    """A model whose run does not return until the test lets it."""

    def __init__(self, then=lambda _: None):
        super().__init__(before=self.hang)
        self.begun, self.returns, self.then = threading.Event(), threading.Event(), then

    def hang(self, inputs):
        self.begun.set()
        assert self.returns.wait(WAIT)
        self.then(inputs)


@pytest.fixture
def scheduler():
    return DeviceScheduler(2)


@pytest.fixture
def serve(scheduler, monkeypatch):
    """Serve a model by its puppets on each device; the test has its own watchdog."""
    monkeypatch.setattr(batcher_module, "ABANDON_SECONDS", 0.05)
    watchdog = RunWatchdog()
    watchdog.start()
    with contextlib.ExitStack() as stack:
        stack.callback(watchdog.stop)

        def serve(devices, policy=None):
            runs = [(device, puppet) for device, puppet in devices.items()]
            registry = CollectorRegistry()
            batcher = Batcher(
                "m/1",
                policy or BatchPolicy(max_rows=8, inline=False),
                Metrics(registry).for_version("m", 1),
                runs,
                scheduler=scheduler,
                watchdog=watchdog,
            )
            batcher.registry = registry
            batcher.start()
            stack.callback(batcher.join, 0.0)
            stack.callback(batcher.close)
            for puppet in devices.values():
                if isinstance(puppet, Hanging):
                    stack.callback(puppet.returns.set)
            return batcher

        yield serve


def test_a_batch_runs_on_the_other_device_and_no_caller_notices(serve, scheduler):
    losses = []
    scheduler.on_lost = lambda *arguments: losses.append(arguments)
    scheduler.mark_lost("cuda:9", "of another model")
    lost, sound = lose("cuda:0"), Puppet()
    batcher = serve({"cuda:0": lost, "cuda:1": sound})
    requests = [WaitingRequest(batcher, [value]) for value in range(20)]
    assert [one.answer for one in requests] == [[2 * value] for value in range(20)]
    again = [WaitingRequest(batcher, [value]) for value in range(5)]
    assert [one.answer for one in again] == [[2 * value] for value in range(5)]
    assert len(lost.batches) <= 1
    assert losses[1:] == ([("cuda:0", ILLEGAL_ADDRESS)] if lost.batches else [])


def test_without_another_device_all_requests_fail_at_once_and_name_it(serve):
    lost = lose("cuda:0")
    batcher = serve({"cuda:0": lost})
    requests = [WaitingRequest(batcher, [1]) for _ in range(10)]
    assert {one.answer for one in requests} == {DeviceLostError}
    assert {one.results[0][1].code for one in requests} == {14}
    later = WaitingRequest(batcher, [1])
    assert later.answer is DeviceLostError
    assert str(later.results[0][1]) == (
        f"device lost: cuda:0 failed while it ran the request ({ILLEGAL_ADDRESS})"
    )
    assert len(lost.batches) == 1


def test_a_request_that_loses_two_devices_is_not_tried_on_a_third(serve):
    devices = {f"cuda:{number}": lose(f"cuda:{number}") for number in range(3)}
    batcher = serve(devices)
    request = WaitingRequest(batcher, [1])
    assert request.answer is ModelFailedError  # INTERNAL: clients do not retry it
    assert sum(len(puppet.batches) for puppet in devices.values()) == 2


def test_a_run_that_does_not_return_is_abandoned(serve, scheduler):
    hanging = Hanging()
    batcher = serve({"cuda:0": hanging})
    request = WaitingRequest(batcher, [3])
    assert hanging.begun.wait(WAIT)
    scheduler.mark_lost("cuda:0", "the driver has not answered for 5 s")
    assert request.answer is DeviceLostError
    assert WaitingRequest(batcher, [1]).answer is DeviceLostError
    batcher.close()
    assert batcher.join(batcher_module.time.monotonic() + WAIT)  # though the run goes on
    assert batcher.admission.predict_wait() == 0.0


def test_the_requests_of_a_run_that_is_abandoned_run_on_the_other_device(serve, scheduler):
    hanging, sound = Hanging(), Puppet()
    batcher = serve({"cuda:0": hanging, "cuda:1": sound})
    requests = []
    while not hanging.begun.wait(0.01):  # either device may take the first ones
        requests.append(WaitingRequest(batcher, [3]))
    assert WaitingRequest(batcher, [4]).answer == [8]
    scheduler.mark_lost("cuda:0", "the driver has not answered for 5 s")
    assert {tuple(one.answer) for one in requests} == {(6,)}
    hanging.returns.set()
    assert [WaitingRequest(batcher, [value]).answer for value in range(4)] == [[0], [2], [4], [6]]


def test_what_an_abandoned_run_raises_in_the_end_is_no_second_loss(serve, scheduler):
    """Its requests run on the other device meanwhile."""
    lost, other = Hanging(then=lose("cuda:0").before), Hanging()
    batcher = serve({"cuda:0": lost, "cuda:1": other})
    requests = []
    while not lost.begun.wait(0.01):
        requests.append(WaitingRequest(batcher, [3]))
    scheduler.mark_lost("cuda:0", "the driver has not answered for 5 s")
    abandoned = [thread for thread in threading.enumerate() if thread.name.startswith("m/1#")]
    assert other.begun.wait(WAIT)
    deadline = time.monotonic() + WAIT
    while len(batcher._active_batches) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    lost.returns.set()
    while all(thread.is_alive() for thread in abandoned) and time.monotonic() < deadline:
        time.sleep(0.01)
    other.returns.set()
    assert {tuple(one.answer) for one in requests} == {(6,)}


def test_a_run_that_has_just_ended_is_not_abandoned(serve, scheduler):
    """The watchdog may look at it for the last time when its thread has left it already."""
    batcher = serve({"cuda:0": Puppet(), "cuda:1": Puppet()})
    batch = Batch([FakeRequest({}, 1, ())], turn=scheduler.turn(batcher._runs, lambda: 0.0))
    threads = [*batcher._threads]
    batcher._leave_lost_device(batch, 0.0, "gone")
    batcher._leave_lost_device(batch, WAIT, "gone")
    assert (batch.abandoned, batcher._threads) == (False, threads)


def test_the_halves_of_a_batch_that_loses_its_device_run_elsewhere(scheduler):
    """The batch fails for another reason, then its first half loses the device."""

    def fail_then_lose(inputs):
        if len(inputs["x"]) > 4:
            raise RuntimeError("unrelated")
        raise DeviceLostError("cuda:0", ILLEGAL_ADDRESS)

    batcher = PuppetBatcher(scheduler=scheduler)  # which has the CPU, too
    requests = [SubmittedRequest(batcher, [value]) for value in range(8)]
    lost, sound = Puppet(before=fail_then_lose), Puppet()
    batcher.step(lost)
    assert lost.batches == [8, 4]
    batcher.step(sound)
    batcher.step(sound)
    assert sound.batches == [4, 4]
    assert [one.answer for one in requests] == [[2 * value] for value in range(8)]


def test_the_driver_is_asked_about_a_device_whose_run_does_not_end(serve, scheduler, monkeypatch):
    monkeypatch.setattr(batcher_module, "SUSPECT_SECONDS", 0.1)
    monkeypatch.setattr(batcher_module, "LONG_RUN_SECONDS", 0.01)
    asked = threading.Event()
    scheduler.check_device = lambda device: (device == "cuda:0") and asked.set()
    hanging = Hanging()
    batcher = serve({"cuda:0": hanging})
    request = WaitingRequest(batcher, [3])
    assert asked.wait(WAIT)
    hanging.returns.set()
    assert request.answer == [6]


def test_a_turn_is_not_waited_for_on_lost_devices():
    scheduler = DeviceScheduler(1)
    runs = ModelRuns("m", [("cuda:0", Puppet()), ("cuda:1", Puppet())])
    now = lambda: 0.0  # noqa: E731
    scheduler.mark_lost("cuda:0", "gone")
    with scheduler.turn(runs, now) as turn:
        assert turn.device == "cuda:1"
        assert scheduler.try_turn(runs, now) is None
        raised = []

        def wait():
            try:
                with scheduler.turn(runs, now):
                    pass
            except DeviceLostError as error:
                raised.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        scheduler.mark_lost("cuda:1", "gone, too")
        thread.join(WAIT)
        assert [one.device for one in raised] == ["cuda:0"]
        with pytest.raises(DeviceLostError):
            scheduler.try_turn(runs, now)
    assert scheduler.lost_devices == {"cuda:0": "gone", "cuda:1": "gone, too"}


def test_each_request_gets_one_answer_while_devices_are_lost_one_after_the_other(serve, scheduler):
    """Some of them by an error and some by a run that does not return."""
    hanging = [Hanging(), Hanging()]
    left = {"cuda:0": 12, "cuda:1": 25, "cuda:2": 40, "cuda:3": 60}
    runs = threading.Lock()

    def run_on(device, number):
        def run(inputs):
            with runs:
                left[device] -= 1
            if left[device] < 0:
                if number < len(hanging):
                    scheduler.mark_lost(device, "the driver has not answered for 5 s")
                    hanging[number].hang(inputs)
                raise DeviceLostError(device, ILLEGAL_ADDRESS)

        return Puppet(before=run)

    puppets = {device: run_on(device, number) for number, device in enumerate(left)}
    batcher = serve({**puppets, "cuda:4": Puppet()}, BatchPolicy(max_rows=4, inline=False))
    requests = []
    for value in range(400):
        requests.append(WaitingRequest(batcher, [value]))
        if value % 3 == 0:
            requests[-1].done.wait(0.002)
    answers = [one.answer for one in requests]  # each asserts that there is exactly one
    wrong = [
        answer
        for value, answer in enumerate(answers)
        if answer not in ([2 * value], ModelFailedError)
    ]
    assert wrong == []
    assert answers.count(ModelFailedError) <= 16  # lost two devices
    assert WaitingRequest(batcher, [7]).answer == [14]
    for one in hanging:
        one.returns.set()
    batcher.close()
    assert batcher.join(batcher_module.time.monotonic() + WAIT)
    assert not batcher._active_batches
