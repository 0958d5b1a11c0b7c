"""L0_model_queue: sizes of queues, timeouts and priorities of config.pbtxt."""

import time

import numpy as np
import pytest
from support import triton_models
from support.triton_calls import expect_error, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.triton("L0_model_queue", cause="queue policies"),
]
LATE = ("DEADLINE_EXCEEDED", "Request timeout expired")
"""Triton's status is UNAVAILABLE."""

PRIORITIES = (
    "priority_levels: 2 default_priority_level: 2 "
    "default_queue_policy { allow_timeout_override: true } "
    "priority_queue_policy { key: 2 value: "
    "{ timeout_action: REJECT default_timeout_microseconds: 300000 "
    "allow_timeout_override: true } }"
)


def queue_policy(**options):
    return "default_queue_policy {{ {} }}".format(
        " ".join(f"{name}: {value}" for name, value in options.items())
    )


def batching(delay, more=""):
    return (
        f"dynamic_batching {{ preferred_batch_size: [ 4, 8 ] "
        f"max_queue_delay_microseconds: {round(delay * 1e6)} {more} }}"
    )


@pytest.fixture(scope="module")
def server(serve, tmp_path_factory):
    root = tmp_path_factory.mktemp("repository")
    policies = {
        "delayed": queue_policy(timeout_action="DELAY", default_timeout_microseconds=300000),
        "rejected": queue_policy(timeout_action="REJECT", default_timeout_microseconds=300000),
        "overridden": queue_policy(
            timeout_action="REJECT",
            default_timeout_microseconds=20000000,
            allow_timeout_override="true",
        ),
        "kept": queue_policy(timeout_action="REJECT", default_timeout_microseconds=20000000),
        "capped": queue_policy(
            timeout_action="REJECT",
            default_timeout_microseconds=300000,
            allow_timeout_override="true",
        ),
        "levels": "priority_levels: 2 default_priority_level: 2",
        "many_levels": "priority_levels: 4294967296 default_priority_level: 4294967296",
        "policies": PRIORITIES,
    }
    for name, policy in policies.items():
        folder = root / name
        triton_models.save_identities(folder / "1" / "model.onnx", "FP32", [["batch", 16]])
        delay = 2 if name in ("delayed", "kept") else 60
        config = triton_models.identities_config("FP32", [[16]], more=batching(delay, policy))
        triton_models.write_config(folder, config)
    folder = root / "small_queue"
    triton_models.save_slow_identity(folder / "1" / "model.onnx", 20)
    config = triton_models.identities_config(
        "FP32",
        [[1]],
        max_batch_size=1,
        more=f"dynamic_batching {{ {queue_policy(max_queue_size=8)} }}",
    )
    triton_models.write_config(folder, config)
    return serve(root, "--threads", "1").triton


def start(server, model, rows, *, priority=0, timeout_us=0):
    parameters = {}
    if priority:
        parameters["priority"] = priority
    if timeout_us:
        parameters["timeout"] = timeout_us
    values = np.full((rows, 16), rows, np.float32)
    return server.start(model, {"INPUT0": ("FP32", values)}, parameters=parameters, timeout=20)


def check(call, rows):
    assert call.result().raw_output_contents[0] == np.full((rows, 16), rows, "<f4").tobytes()


@pytest.mark.triton("L0_model_queue", declared="queue full")
def test_max_queue_size(server):
    inputs = {"INPUT0": ("FP32", np.ones((1, 1), np.float32))}
    first = server.start("small_queue", inputs)
    time.sleep(0.2)
    calls = [server.start("small_queue", inputs) for _ in range(10)]
    failed = [call for call in calls if call.exception() is not None]
    assert first.result()
    assert len(failed) in (1, 2)  # a request more waits outside the queue while one runs
    for call in failed:
        expect_error(call.result, "RESOURCE_EXHAUSTED", "Exceeds maximum queue size", "queue")


def test_late_requests_are_delayed(server):
    first = start(server, "delayed", 1)
    time.sleep(0.6)
    others = [start(server, "delayed", 2), start(server, "delayed", 2)]
    for call in others:
        check(call, 2)  # a preferred batch without the late one
    assert not first.done()
    check(first, 1)


@pytest.mark.triton("L0_model_queue", declared="too late")
def test_late_requests_are_rejected(server):
    first = start(server, "rejected", 1)
    expect_error(first.result, *LATE, "deadline")
    others = [start(server, "rejected", 2), start(server, "rejected", 2)]
    for call in others:
        check(call, 2)


@pytest.mark.triton("L0_model_queue", declared="too late")
def test_a_shorter_timeout_of_the_request(server):
    first = start(server, "overridden", 1, timeout_us=200_000)
    expect_error(first.result, *LATE, "deadline")
    others = [start(server, "overridden", 2), start(server, "overridden", 2)]
    for call in others:
        check(call, 2)


@pytest.mark.triton("L0_model_queue", declared="too late")
def test_a_longer_timeout_of_the_request_does_not_count(server):
    first = start(server, "capped", 1, timeout_us=20_000_000)
    expect_error(first.result, *LATE, "deadline")


def test_timeouts_of_requests_without_permission(server):
    check(start(server, "kept", 1, timeout_us=100_000), 1)


@pytest.mark.parametrize("model", ["levels", "many_levels"])
def test_priority_levels(server, model):
    least = 2**32 if model == "many_levels" else 2
    first = start(server, model, 2)
    time.sleep(0.1)
    second = start(server, model, 1, priority=least)
    time.sleep(0.1)
    third = start(server, model, 2, priority=1)
    check(first, 2)
    check(third, 2)
    assert not second.done()
    second.cancel()


def test_policies_of_levels(server):
    begin = time.monotonic()
    low = start(server, "policies", 1, priority=2)
    high = start(server, "policies", 1, priority=1)
    error = low.exception()
    assert "expired" in error.details() or "deadline" in error.details()
    assert time.monotonic() - begin >= 0.3
    assert not high.done()
    others = start(server, "policies", 3, priority=1)
    check(others, 3)
    check(high, 1)


@pytest.mark.triton("L0_model_queue", cause="queue policies")
def test_model_config_has_the_policies(server):
    config = server.config("kept").dynamic_batching.default_queue_policy
    assert config.default_timeout_microseconds == 20_000_000
    assert not config.allow_timeout_override
    config = server.config("policies").dynamic_batching
    assert config.priority_levels == 2
    assert config.priority_queue_policy[2].default_timeout_microseconds == 300_000


def test_the_queue_is_empty_afterwards(server):
    wait_for(lambda: server.statistics("levels")[0].inference_stats.success.count >= 2)
