"""Run by a Python that has tritonclient: `triton_driver.py ADDRESS SCENARIO`.

Each scenario does what programs written for Triton do; it fails by an assertion.
"""

import asyncio
import queue
import sys
import time
import uuid

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import (
    InferenceServerException,
    np_to_triton_dtype,
    serialize_byte_tensor,
    shared_memory,
)

VALUES = {
    "BOOL": np.array([[True, False], [False, True]]),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 65535]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-(2**15), 2**15 - 1]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1]], np.int64),
    "FP16": np.array([[0.5, -65504.0]], np.float16),
    "FP32": np.array([[0.1, -3e38]], np.float32),
    "FP64": np.array([[0.1, -1e308]], np.float64),
    "BF16": np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
    "BYTES": np.array([[b"one", "über".encode()], [b"", b"a\0b"]], np.object_),
}
ROWS = np.array([[1, 2, 3, 4], [-4, -3, -2, -1], [0, 0, 0, 0]], np.float32)


def tensor(name, array):
    infer_input = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return infer_input.set_data_from_numpy(array)


def pick(index):
    return [tensor("index", np.array([index], np.int64))]


def slow():
    return [tensor("x", np.ones(1, np.float32))]


def error_of(call):
    """Returns the error that a call raises, or None."""
    try:
        call()
    except InferenceServerException as error:
        return error
    return None


def assert_error(call, *parts, code=""):
    """Checks that a call raises an error with these parts of a message and this code."""
    error = error_of(call)
    assert error is not None, "no error was raised"
    for part in parts:
        assert part in error.message(), error.message()
    if code:
        assert error.status() == f"StatusCode.{code}", error.status()


def health(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("classifier")
    assert client.is_model_ready("classifier", "1")
    assert not client.is_model_ready("classifier", "9")
    assert not client.is_model_ready("nobody")


def describe(client):
    server = client.get_server_metadata(as_json=True)
    assert server["name"] == "neurona"
    assert "system_shared_memory" in server["extensions"]
    metadata = client.get_model_metadata("classifier", as_json=True)
    assert metadata["versions"] == ["1", "2"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    config = client.get_model_config("classifier", as_json=True)["config"]
    assert config["max_batch_size"] == 64
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]}]
    assert_error(
        lambda: client.get_model_metadata("nobody"),
        "Request for unknown model: 'nobody' is not found",
        code="NOT_FOUND",
    )
    index = {(m.name, m.version): m.state for m in client.get_model_repository_index().models}
    assert index["classifier", "2"] == "READY"
    assert_error(lambda: client.load_model("classifier"), code="FAILED_PRECONDITION")
    assert_error(lambda: client.unload_model("classifier"), code="FAILED_PRECONDITION")
    assert client.get_trace_settings().settings["trace_level"].value == ["OFF"]
    assert_error(
        lambda: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
        code="UNIMPLEMENTED",
    )
    assert client.get_log_settings().settings["log_info"].bool_param
    assert_error(
        lambda: client.update_log_settings({"log_info": False}), code="FAILED_PRECONDITION"
    )


def datatypes(client):
    for kind, array in VALUES.items():
        result = client.infer(f"echo_{kind}", [tensor("x", array)], request_id=kind)
        echo = result.as_numpy("echo")
        assert result.get_response().id == kind
        assert echo.dtype == array.dtype, (kind, echo.dtype)
        assert echo.shape == array.shape
        assert (echo == array).all(), (kind, echo)


def options(client):
    def ask(**more):
        result = client.infer("classifier", [tensor("x", ROWS)], **more)
        assert result.as_numpy("probabilities").shape == (3, 3)
        return result.get_response().model_version

    assert ask() == "2"
    assert ask(model_version="1") == "1"
    assert ask(model_version="latest") == "2"
    requested = [triton.InferRequestedOutput("probabilities")]
    assert ask(outputs=requested, priority=1, timeout=10_000_000) == "2"
    assert ask(parameters={"colour": "red", "number": 1.5, "on": True}) == "2"
    for algorithm in ("gzip", "deflate"):
        assert ask(compression_algorithm=algorithm, headers={"x-caller": "me"}) == "2"
    scale = tensor("scale", np.array([10], np.float32))
    values = tensor("x", ROWS[:, :2])
    scaled = client.infer("adjustable", [values, scale]).as_numpy("y")
    assert (scaled == ROWS[:, :2] * 10).all()
    doubled = client.infer("adjustable", [values]).as_numpy("y")
    assert (doubled == ROWS[:, :2] * 2).all()
    assert (client.infer("fixed", [tensor("x", ROWS[:1, :2])]).as_numpy("twice") == [2, 4]).all()


def classification(client):
    inputs = [tensor("x", ROWS)]
    probabilities = client.infer("classifier", inputs).as_numpy("probabilities")
    requested = [triton.InferRequestedOutput("probabilities", class_count=2)]
    texts = client.infer("classifier", inputs, outputs=requested).as_numpy("probabilities")
    assert texts.shape == (3, 2)
    for row, row_texts in zip(probabilities, texts, strict=True):
        value, index, label = row_texts[0].decode().split(":")
        assert int(index) == row.argmax()
        assert np.float32(value) == row.max()
        assert label == ("ant", "bee", "cat")[row.argmax()]


def callbacks(client):
    done = queue.Queue()
    for number in range(100):
        client.async_infer(
            "picker",
            pick(number % 4),
            lambda result, error, number=number: done.put((number, result, error)),
        )
    for _ in range(100):
        number, result, error = done.get(timeout=30)
        assert error is None
        assert result.as_numpy("picked").tolist() == [10 * (number % 4)]
    client.async_infer("nobody", pick(1), lambda result, error: done.put((result, error)))
    result, error = done.get(timeout=30)
    assert result is None
    assert "unknown model" in error.message()


def stream(client):
    done = queue.Queue()
    client.start_stream(lambda result, error: done.put((result, error)))
    for number in range(50):
        client.async_stream_infer("picker", pick(number % 4), request_id=str(number))
    client.async_stream_infer("nobody", pick(0))
    client.async_stream_infer("picker", pick(3), enable_empty_final_response=True)
    for number in range(50):
        result, error = done.get(timeout=30)
        assert error is None
        assert result.get_response().id == str(number)
        assert result.as_numpy("picked").tolist() == [10 * (number % 4)]
    result, error = done.get(timeout=30)
    assert result is None
    assert "Request for unknown model: 'nobody' is not found" in error.message()
    result, error = done.get(timeout=30)
    assert result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()

    client.start_stream(
        lambda result, error: done.put((result, error)), headers={"triton_grpc_error": "true"}
    )
    client.async_stream_infer("nobody", pick(0))
    result, error = done.get(timeout=30)
    assert error.status() == "StatusCode.NOT_FOUND"
    client.stop_stream()


def cancellation(client):
    done = queue.Queue()
    calls = [
        client.async_infer("slow", slow(), lambda result, error: done.put(error)) for _ in range(5)
    ]
    for call in calls:
        call.cancel()
    for _ in calls:
        assert done.get(timeout=30).status() == "StatusCode.CANCELLED"
    client.start_stream(lambda result, error: done.put(error))
    for _ in range(5):
        client.async_stream_infer("slow", slow())
    client.stop_stream(cancel_requests=True)
    assert done.get(timeout=30).status() == "StatusCode.CANCELLED"


def timeouts(client):
    late = {"code": "DEADLINE_EXCEEDED"}
    assert_error(lambda: client.infer("slow", slow(), client_timeout=0.05), **late)
    done = queue.Queue()
    client.async_infer("slow", slow(), lambda result, error: done.put(error), client_timeout=0.05)
    assert done.get(timeout=30).status() == "StatusCode.DEADLINE_EXCEEDED"
    client.start_stream(lambda result, error: done.put(error), stream_timeout=0.05)
    client.async_stream_infer("slow", slow())
    assert done.get(timeout=30).status() == "StatusCode.DEADLINE_EXCEEDED"
    client.stop_stream()
    # By the parameter of the request: the one in front of it takes longer.
    first = client.async_infer("slow", slow(), lambda result, error: None)
    assert_error(lambda: client.infer("slow", slow(), timeout=1000), "deadline", **late)
    first.cancel()
    calls = [
        client.is_server_live,
        client.is_server_ready,
        lambda **t: client.is_model_ready("slow", **t),
        client.get_server_metadata,
        lambda **t: client.get_model_metadata("slow", **t),
        lambda **t: client.get_model_config("slow", **t),
        client.get_model_repository_index,
        lambda **t: client.load_model("slow", **t),
        lambda **t: client.unload_model("slow", **t),
        client.get_inference_statistics,
        lambda **t: client.update_trace_settings(settings={}, **t),
        client.get_trace_settings,
        lambda **t: client.update_log_settings({}, **t),
        client.get_log_settings,
        client.get_system_shared_memory_status,
        lambda **t: client.register_system_shared_memory("a", "a", 1, **t),
        client.unregister_system_shared_memory,
        client.get_cuda_shared_memory_status,
        lambda **t: client.register_cuda_shared_memory("a", b"", 0, 1, **t),
        client.unregister_cuda_shared_memory,
    ]
    for call in calls:
        assert_error(lambda call=call: call(client_timeout=-1), "Deadline Exceeded", **late)


def invalid(client):
    def infer(*inputs, model="classifier", **more):
        return lambda: client.infer(model, list(inputs), **more)

    bad = {"code": "INVALID_ARGUMENT"}
    x = tensor("x", ROWS)
    assert_error(infer(x, model="nobody"), "Request for unknown model", code="NOT_FOUND")
    assert_error(infer(x, model_version="9"), "version 9 is not found", code="NOT_FOUND")
    assert_error(infer(tensor("y", ROWS)), "inputs 'y'", **bad)
    assert_error(infer(), "inputs none", **bad)
    assert_error(infer(x, x), "duplicate input 'x'", **bad)
    assert_error(infer(tensor("x", ROWS.astype(np.float64))), "'x' data-type is 'FP64'", **bad)
    assert_error(infer(tensor("x", ROWS[:, :3])), "[3, 3]", **bad)
    assert_error(infer(tensor("x", ROWS[:0])), "[0, 4]", **bad)
    shorter = tensor("x", ROWS)
    shorter.set_shape([2, 4])
    assert_error(infer(shorter), "Expected 32, got 48", **bad)
    outputs = [triton.InferRequestedOutput("nothing")]
    assert_error(infer(x, outputs=outputs), "unexpected inference output 'nothing'", **bad)
    outputs = [triton.InferRequestedOutput("probabilities")] * 2
    assert_error(infer(x, outputs=outputs), "duplicate output", **bad)
    assert_error(infer(x, sequence_id=5, sequence_start=True), "sequence", code="UNIMPLEMENTED")
    assert_error(
        infer(*pick(9), model="picker"), "the model failed on this request", code="INTERNAL"
    )
    any_bytes = tensor("x", np.array([[b"\xff\0\xfe"]], np.object_))
    assert infer(any_bytes, model="echo_BYTES")().as_numpy("echo").tolist() == [[b"\xff\0\xfe"]]


def memory(client):
    """An input and an output, in one region each, of every datatype."""
    names = [f"neurona-{uuid.uuid4().hex}" for _ in range(2)]
    handles = [shared_memory.create_shared_memory_region(n, n, 256) for n in names]
    try:
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        for name in names:
            client.register_system_shared_memory(name, name, 256)
        assert sorted(client.get_system_shared_memory_status().regions) == sorted(names)
        assert_error(
            lambda: client.register_system_shared_memory(names[0], names[0], 256),
            "already in manager",
            code="ALREADY_EXISTS",
        )
        for kind, array in VALUES.items():
            if kind == "BF16":  # not supported by this part of the client
                continue
            # Strings have to be serialized by the caller.
            content = serialize_byte_tensor(array) if kind == "BYTES" else array
            shared_memory.set_shared_memory_region(handles[0], [content])
            size = len(content.item()) if kind == "BYTES" else array.nbytes
            infer_input = triton.InferInput("x", list(array.shape), kind)
            infer_input.set_shared_memory(names[0], size)
            output = triton.InferRequestedOutput("echo")
            output.set_shared_memory(names[1], 100, offset=16)
            result = client.infer(f"echo_{kind}", [infer_input], outputs=[output])
            assert result.get_output("echo").datatype == kind
            echo = shared_memory.get_contents_as_numpy(
                handles[1], array.dtype.type, list(array.shape), offset=16
            )
            assert (echo == array).all(), (kind, echo)
        infer_input = triton.InferInput("x", [1, 2], "FP32")
        infer_input.set_shared_memory(names[0], 8, offset=250)
        assert_error(lambda: client.infer("echo_FP32", [infer_input]), "Invalid offset + byte size")
        client.unregister_system_shared_memory(names[0])
        assert list(client.get_system_shared_memory_status().regions) == [names[1]]
        client.unregister_system_shared_memory()
        assert not client.get_cuda_shared_memory_status().regions
    finally:
        for handle in handles:
            shared_memory.destroy_shared_memory_region(handle)


def measure(client):
    """The calls of perf_analyzer in its order, with load between two reads of the statistics."""
    metadata = client.get_model_metadata("picker")
    config = client.get_model_config("picker").config
    assert config.max_batch_size > 0
    assert [i.name for i in config.input] == [i.name for i in metadata.inputs]
    assert [list(i.shape)[1:] for i in metadata.inputs] == [list(i.dims) for i in config.input]
    assert not config.model_transaction_policy.decoupled
    assert "statistics" in client.get_server_metadata().extensions

    def statistics():
        (model_statistics,) = client.get_inference_statistics("picker").model_stats
        return model_statistics

    before = statistics()
    done = queue.Queue()
    started = time.time()
    for _ in range(200):
        client.async_infer("picker", pick(1), lambda result, error: done.put(error))
    for _ in range(200):
        assert done.get(timeout=30) is None
    elapsed = (time.time() - started) * 1e9
    after = statistics()
    assert after.inference_count - before.inference_count == 200
    runs = after.execution_count - before.execution_count
    assert 1 <= runs <= 200
    assert sum(b.compute_infer.count for b in after.batch_stats) == after.execution_count
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        now, then = getattr(after.inference_stats, name), getattr(before.inference_stats, name)
        assert now.count - then.count == 200, name
        assert 0 <= now.ns - then.ns <= 200 * elapsed, name
    assert after.last_inference >= int(started * 1000)
    assert len(client.get_inference_statistics().model_stats) >= 15


def draining(client):
    """The server is draining: it serves until load balancers have noticed."""
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert client.infer("picker", pick(2)).as_numpy("picked").tolist() == [20]


async def cancelled(call):
    """Cancels a call that has been sent."""
    task = asyncio.create_task(call)
    await asyncio.sleep(0.02)
    task.cancel()
    return await task


async def with_asyncio(address):
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        assert (await client.get_server_metadata()).name == "neurona"
        results = await asyncio.gather(*[client.infer("picker", pick(i % 4)) for i in range(100)])
        assert [r.as_numpy("picked")[0] for r in results] == [10 * (i % 4) for i in range(100)]
        late, task = await asyncio.gather(
            client.infer("slow", slow(), client_timeout=0.05),
            cancelled(client.infer("slow", slow())),
            return_exceptions=True,
        )
        assert late.status() == "StatusCode.DEADLINE_EXCEEDED"
        assert isinstance(task, asyncio.CancelledError)

        async def requests():
            for number in range(20):
                yield {"model_name": "picker", "inputs": pick(number % 4)}
            yield {"model_name": "nobody", "inputs": pick(1)}

        responses = [response async for response in client.stream_infer(requests())]
        assert [r.as_numpy("picked")[0] for r, _ in responses[:20]] == [
            10 * (i % 4) for i in range(20)
        ]
        assert "unknown model" in responses[20][1].message()
        endless = client.stream_infer(requests())
        await endless.__anext__()
        assert endless.cancel()


SYNC = (
    health,
    describe,
    datatypes,
    options,
    classification,
    callbacks,
    stream,
    cancellation,
    timeouts,
    invalid,
    memory,
    measure,
)


def main():
    address, scenario = sys.argv[1:]
    if scenario == "with_asyncio":
        asyncio.run(with_asyncio(address))
        return
    (run,) = [function for function in (*SYNC, draining) if function.__name__ == scenario]
    with triton.InferenceServerClient(address) as client:
        run(client)


if __name__ == "__main__":
    main()
