"""Run by a Python that has tritonclient: `examples_driver.py ADDRESS EXAMPLES...`.

Each function makes the calls of one of Triton's Python examples and fails where the example would.
Prints a JSON object: the error of each example, or null.
"""

import asyncio
import functools
import json
import queue
import sys
import traceback
import uuid

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.grpc.model_config_pb2 as mc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import (
    InferenceServerException,
    deserialize_bytes_tensor,
    serialize_byte_tensor,
    shared_memory,
)

LEFT = np.arange(16, dtype=np.int32).reshape(1, 16)
RIGHT = np.ones((1, 16), np.int32)


def error_of(call):
    """Return the error that a call raises, or None."""
    try:
        call()
    except InferenceServerException as error:
        return error
    return None


def expect_failure(call, text):
    error = error_of(call)
    assert error is not None, f"no error (expected {text})"
    assert text in error.message(), error


async def expect_async_failure(call, text):
    (error,) = await asyncio.gather(call, return_exceptions=True)
    assert isinstance(error, InferenceServerException), error
    assert text in error.message(), error


def check(left, right, results):
    assert (results[0] == left + right).all()
    assert (results[1] == left - right).all()


def infer_inputs(module=triton, kind="INT32", left=LEFT, right=RIGHT):
    inputs = []
    for name, array in (("INPUT0", left), ("INPUT1", right)):
        tensor = module.InferInput(name, [1, 16], kind)
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def requested(module=triton, names=("OUTPUT0", "OUTPUT1")):
    return [module.InferRequestedOutput(name) for name in names]


def texts(array):
    return np.array([str(n).encode() for n in array.ravel()], object).reshape(1, 16)


def numbers(array):
    return np.array([int(text) for text in array.ravel()]).reshape(1, 16)


def simple_grpc_infer_client(client):
    results = client.infer(
        "simple",
        infer_inputs(),
        outputs=requested(),
        client_timeout=30,
        headers={"test": "1"},
        compression_algorithm="gzip",
    )
    statistics = client.get_inference_statistics("simple")
    assert len(statistics.model_stats) == 1
    check(LEFT, RIGHT, [results.as_numpy("OUTPUT0"), results.as_numpy("OUTPUT1")])


def simple_grpc_async_infer_client(client):
    done = queue.Queue()
    for _ in range(5):
        client.async_infer(
            "simple",
            infer_inputs(),
            lambda result, error: done.put((result, error)),
            outputs=requested(),
            client_timeout=30,
        )
    for _ in range(5):
        result, error = done.get(timeout=30)
        assert error is None
        check(LEFT, RIGHT, [result.as_numpy("OUTPUT0"), result.as_numpy("OUTPUT1")])


def simple_grpc_string_infer_client(client):
    inputs = infer_inputs(kind="BYTES", left=texts(LEFT), right=texts(RIGHT))
    results = client.infer("simple_string", inputs, outputs=requested())
    check(LEFT, RIGHT, [numbers(results.as_numpy(name)) for name in ("OUTPUT0", "OUTPUT1")])
    # A second part of the example: the identity of bytes that are no text.
    values = np.array([[b"\xd7\xff", b"\0", b"text"] + [b""] * 13], object)
    tensor = triton.InferInput("INPUT0", [1, 16], "BYTES")
    tensor.set_data_from_numpy(values)
    echo = client.infer("simple_identity", [tensor]).as_numpy("OUTPUT0")
    assert (echo == values).all()


def simple_grpc_health_metadata(client):
    headers = {"test": "1"}
    assert client.is_server_live(headers=headers)
    assert client.is_server_ready(headers=headers)
    assert client.is_model_ready("simple", headers=headers)
    assert client.get_server_metadata(headers=headers).name
    assert client.get_model_metadata("simple", headers=headers).name == "simple"
    expect_failure(
        lambda: client.get_model_metadata("wrong_model_name", headers=headers),
        "Request for unknown model",
    )
    assert client.get_model_config("simple", headers=headers).config.name == "simple"


def simple_grpc_custom_args_client(address):
    arguments = [("grpc.lb_policy_name", "round_robin"), ("grpc.max_send_message_length", -1)]
    with triton.InferenceServerClient(address, channel_args=arguments) as client:
        simple_grpc_infer_client(client)


def simple_grpc_keepalive_client(address):
    options = triton.KeepAliveOptions(
        keepalive_time_ms=20000,
        keepalive_timeout_ms=10000,
        keepalive_permit_without_calls=False,
        http2_max_pings_without_data=2,
    )
    with triton.InferenceServerClient(address, keepalive_options=options) as client:
        simple_grpc_infer_client(client)


def simple_grpc_shm_client(client):
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    size = LEFT.nbytes
    regions = {}
    try:
        for name in ("output_data", "input_data"):
            key = "/neurona_example_" + name
            regions[name] = shared_memory.create_shared_memory_region(name, key, size * 2)
            client.register_system_shared_memory(name, key, size * 2)
        shared_memory.set_shared_memory_region(regions["input_data"], [LEFT])
        shared_memory.set_shared_memory_region(regions["input_data"], [RIGHT], offset=size)
        inputs, outputs = [], requested()
        for index in range(2):
            inputs.append(triton.InferInput(f"INPUT{index}", [1, 16], "INT32"))
            inputs[-1].set_shared_memory("input_data", size, offset=index * size)
            outputs[index].set_shared_memory("output_data", size, offset=index * size)
        results = client.infer("simple", inputs, outputs=outputs)
        arrays = [
            shared_memory.get_contents_as_numpy(
                regions["output_data"], np.int32, [1, 16], offset=index * size
            )
            for index in range(2)
        ]
        assert results.get_output("OUTPUT0").name == "OUTPUT0"
        check(LEFT, RIGHT, [array.copy() for array in arrays])
        assert len(client.get_system_shared_memory_status().regions) == 2
        client.unregister_system_shared_memory()
        assert len(client.get_system_shared_memory_status().regions) == 0
    finally:
        for handle in regions.values():
            shared_memory.destroy_shared_memory_region(handle)


def simple_grpc_shm_string_client(client):
    left, right = (serialize_byte_tensor(texts(array)) for array in (LEFT, RIGHT))
    regions = {}
    try:
        for name, content in (("string0", left), ("string1", right), ("strings", None)):
            size = 512 if content is None else len(content.item())
            key = "/neurona_example_" + name
            regions[name] = shared_memory.create_shared_memory_region(name, key, size)
            client.register_system_shared_memory(name, key, size)
            if content is not None:
                shared_memory.set_shared_memory_region(regions[name], [content])
        inputs, outputs = [], requested()
        for index, content in enumerate((left, right)):
            inputs.append(triton.InferInput(f"INPUT{index}", [1, 16], "BYTES"))
            inputs[-1].set_shared_memory(f"string{index}", len(content.item()))
            outputs[index].set_shared_memory("strings", 256, offset=256 * index)
        client.infer("simple_string", inputs, outputs=outputs)
        arrays = [
            numbers(
                shared_memory.get_contents_as_numpy(
                    regions["strings"], np.object_, [1, 16], offset=256 * index
                )
            )
            for index in range(2)
        ]
        check(LEFT, RIGHT, arrays)
        client.unregister_system_shared_memory()
    finally:
        for handle in regions.values():
            shared_memory.destroy_shared_memory_region(handle)


def reuse_infer_objects_client(client):
    inputs, outputs = infer_inputs(), requested()
    for _ in range(3):
        result = client.infer("simple", inputs, outputs=outputs)
        check(LEFT, RIGHT, [result.as_numpy("OUTPUT0"), result.as_numpy("OUTPUT1")])
    inputs[0].set_data_from_numpy(LEFT * 2)
    result = client.infer("simple", inputs, outputs=outputs)
    check(LEFT * 2, RIGHT, [result.as_numpy("OUTPUT0"), result.as_numpy("OUTPUT1")])


def memory_growth_test(client):
    for _ in range(100):
        simple_grpc_infer_client(client)


def stub_of(address):
    return service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(address))


def add_outputs(message):
    for name in ("OUTPUT0", "OUTPUT1"):
        message.outputs.add(name=name)


def grpc_client(address):
    stub = stub_of(address)
    assert stub.ServerLive(service_pb2.ServerLiveRequest()).live
    assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
    assert stub.ModelReady(service_pb2.ModelReadyRequest(name="simple")).ready
    assert stub.ServerMetadata(service_pb2.ServerMetadataRequest()).extensions
    metadata = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name="simple"))
    assert [i.name for i in metadata.inputs] == ["INPUT0", "INPUT1"]
    config = stub.ModelConfig(service_pb2.ModelConfigRequest(name="simple")).config
    assert config.max_batch_size == 8
    message = service_pb2.ModelInferRequest(model_name="simple", id="my request id")
    for name, array in (("INPUT0", LEFT), ("INPUT1", RIGHT)):
        message.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        message.raw_input_contents.append(array.tobytes())
    add_outputs(message)
    response = stub.ModelInfer(message)
    assert response.id == "my request id"
    arrays = [np.frombuffer(c, np.int32).reshape(1, 16) for c in response.raw_output_contents]
    check(LEFT, RIGHT, arrays)


def explicit_contents(address, model, kind, field, values):
    message = service_pb2.ModelInferRequest(model_name=model)
    for name, array in (("INPUT0", LEFT), ("INPUT1", RIGHT)):
        tensor = message.inputs.add(name=name, datatype=kind, shape=[1, 16])
        getattr(tensor.contents, field).extend(values(array))
    add_outputs(message)
    return stub_of(address).ModelInfer(message).raw_output_contents


def grpc_explicit_int_content_client(address):
    raw = explicit_contents(
        address, "simple", "INT32", "int_contents", lambda array: array.ravel().tolist()
    )
    check(LEFT, RIGHT, [np.frombuffer(content, np.int32).reshape(1, 16) for content in raw])


def grpc_explicit_int8_content_client(address):
    raw = explicit_contents(
        address, "simple_int8", "INT8", "int_contents", lambda array: array.ravel().tolist()
    )
    check(LEFT, RIGHT, [np.frombuffer(content, np.int8).reshape(1, 16) for content in raw])


def grpc_explicit_byte_content_client(address):
    raw = explicit_contents(
        address, "simple_string", "BYTES", "bytes_contents", lambda array: texts(array).ravel()
    )
    check(LEFT, RIGHT, [numbers(deserialize_bytes_tensor(content)) for content in raw])


def image_client(client):
    """The checks of `parse_model`, and requests in all three ways."""
    metadata = client.get_model_metadata("densenet_onnx")
    config = client.get_model_config("densenet_onnx").config
    assert (len(metadata.inputs), len(metadata.outputs), len(config.input)) == (1, 1, 1)
    assert metadata.outputs[0].datatype == "FP32"
    assert sum(size > 1 for size in metadata.outputs[0].shape) <= 1
    assert config.max_batch_size == 0
    assert len(metadata.inputs[0].shape) == 3
    assert config.input[0].format == mc.ModelInput.FORMAT_NCHW
    channels, height, width = metadata.inputs[0].shape
    image = np.full((channels, height, width), 0.5, np.float32)

    def inputs():
        tensor = triton.InferInput("data_0", image.shape, "FP32")
        return [tensor.set_data_from_numpy(image)]

    outputs = [triton.InferRequestedOutput("fc6_1", class_count=3)]
    done = queue.Queue()

    def callback(result, error):
        done.put((result, error))

    done.put((client.infer("densenet_onnx", inputs(), outputs=outputs, request_id="1"), None))
    client.async_infer("densenet_onnx", inputs(), callback, request_id="2", outputs=outputs)
    client.start_stream(callback)
    client.async_stream_infer("densenet_onnx", inputs(), request_id="3", outputs=outputs)
    for _ in range(3):
        result, error = done.get(timeout=30)
        assert error is None, error
        rows = [text.decode().split(":") for text in result.as_numpy("fc6_1")]
        assert [row[1:] for row in rows] == [[str(i), f"LABEL {i}"] for i in (9, 8, 7)]
    client.stop_stream()


def grpc_image_client(address):
    """The same with the generated stubs."""
    stub = stub_of(address)
    config = stub.ModelConfig(service_pb2.ModelConfigRequest(name="densenet_onnx")).config
    assert config.input[0].format == mc.ModelInput.FORMAT_NCHW
    message = service_pb2.ModelInferRequest(model_name="densenet_onnx")
    message.inputs.add(name="data_0", datatype="FP32", shape=[3, 224, 224])
    message.raw_input_contents.append(np.full((3, 224, 224), 0.5, np.float32).tobytes())
    output = message.outputs.add(name="fc6_1")
    output.parameters["classification"].int64_param = 2
    response = stub.ModelInfer(message)
    (output,) = response.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [2])
    assert len(deserialize_bytes_tensor(response.raw_output_contents[0])) == 2


def with_aio(example):
    def run(address):
        async def main():
            async with triton_aio.InferenceServerClient(address) as client:
                await example(client)

        asyncio.run(main())

    run.__name__ = example.__name__
    run.__annotations__ = {"address": str}
    return run


@with_aio
async def simple_grpc_aio_infer_client(client):
    result = await client.infer("simple", infer_inputs(triton_aio), outputs=requested(triton_aio))
    check(LEFT, RIGHT, [result.as_numpy("OUTPUT0"), result.as_numpy("OUTPUT1")])


@with_aio
async def simple_grpc_aio_health_metadata(client):
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("simple")
    assert (await client.get_server_metadata()).name
    assert (await client.get_model_metadata("simple")).name == "simple"
    await expect_async_failure(
        client.get_model_metadata("wrong_model_name"), "Request for unknown model"
    )


@with_aio
async def simple_grpc_aio_string_infer_client(client):
    inputs = infer_inputs(triton_aio, "BYTES", texts(LEFT), texts(RIGHT))
    result = await client.infer("simple_string", inputs, outputs=requested(triton_aio))
    check(LEFT, RIGHT, [numbers(result.as_numpy(name)) for name in ("OUTPUT0", "OUTPUT1")])


def model_control_steps(models):
    """Yield the calls of the example as (name, arguments, keywords, check of the result)."""
    config = '{"max_batch_size":"16"}'
    invalid = '"parameters": {"config": {{"max_batch_size": "16"}}}'
    yield "get_model_repository_index", (), {}, lambda r: len(r.models) == models
    yield "load_model", ("simple",), {}, None
    yield "is_model_ready", ("simple",), {}, bool
    yield "load_model", ("simple",), {"config": invalid}, "failed to load"
    yield "load_model", ("simple",), {"config": config}, None
    yield "get_model_config", ("simple",), {}, lambda r: r.config.max_batch_size == 16
    yield "unload_model", ("simple",), {}, None
    yield "is_model_ready", ("simple",), {}, lambda ready: not ready
    files = {"file:" + "A" * 256: b"a"}
    yield "load_model", ("simple",), {"config": "{}", "files": files}, "Invalid file path"
    yield "is_server_live", (), {}, bool
    yield "load_model", ("wrong_model_name",), {}, "failed to load"


MODELS = 9


def simple_grpc_model_control(client):
    for name, arguments, keywords, expected in model_control_steps(MODELS):
        call = functools.partial(getattr(client, name), *arguments, **keywords)
        if isinstance(expected, str):
            expect_failure(call, expected)
        else:
            result = call()
            assert expected is None or expected(result), f"{name}: {result}"


@with_aio
async def simple_grpc_aio_model_control(client):
    index = await client.get_model_repository_index()
    assert len(index.models) == MODELS
    await client.load_model("simple")
    assert await client.is_model_ready("simple")
    await client.unload_model("simple")
    assert not await client.is_model_ready("simple")
    await expect_async_failure(client.load_model("wrong_model_name"), "failed to load")


VALUES = [11, 7, 5, 3, 2, 0, 1]
SEQUENCES = [[0, *VALUES], [100, *(-value for value in VALUES)], [20, *(-v for v in VALUES)]]


def sequence_calls(dyna, string_id):
    """Yield the arguments of the requests of three sequences, the last with a string as its id."""
    models = ["simple_dyna_sequence" if dyna else "simple_sequence"] * 2
    models.append("simple_string_dyna_sequence" if dyna else "simple_sequence")
    for model, sequence_id, values in zip(models, (1000, 1001, string_id), SEQUENCES, strict=True):
        for number, value in enumerate(values):
            tensor = triton.InferInput("INPUT", [1, 1], "INT32")
            tensor.set_data_from_numpy(np.full([1, 1], value, np.int32))
            yield {
                "model_name": model,
                "inputs": [tensor],
                "outputs": [triton.InferRequestedOutput("OUTPUT")],
                "sequence_id": sequence_id,
                "sequence_start": number == 0,
                "sequence_end": number == len(values) - 1,
            }


def expected_of_sequences(dyna):
    """Return what the examples expect of each request, in the order of the calls."""
    expected = []
    for number, (sequence_id, values) in enumerate(zip((1000, 1001, 1002), SEQUENCES, strict=True)):
        if dyna and number == 2:
            results = np.cumsum(values)
        else:
            results = np.array(values)
            results[0] += 1
        if dyna:
            results[-1] += sequence_id
        expected += results.tolist()
    return expected


def simple_grpc_sequence_sync_infer_client(client):
    for dyna in (False, True):
        calls = sequence_calls(dyna, "1002" if dyna else str(uuid.uuid4()))
        results = [client.infer(**call).as_numpy("OUTPUT")[0][0] for call in calls]
        assert results == expected_of_sequences(dyna), results


def simple_grpc_sequence_stream_infer_client(client):
    for dyna in (False, True):
        done = queue.Queue()
        client.start_stream(lambda result, error, done=done: done.put((result, error)))
        calls = list(sequence_calls(dyna, "1002" if dyna else str(uuid.uuid4())))
        for number, call in enumerate(calls):
            client.async_stream_infer(**call, request_id=f"{call['sequence_id']}_{number}")
        received = []
        for _ in calls:
            result, error = done.get(timeout=30)
            assert error is None, error
            received.append((result.get_response().id, result.as_numpy("OUTPUT")[0][0]))
        client.stop_stream()
        assert [number for number, _ in received] == [
            f"{call['sequence_id']}_{number}" for number, call in enumerate(calls)
        ]
        assert [value for _, value in received] == expected_of_sequences(dyna), received


@with_aio
async def simple_grpc_aio_sequence_stream_infer_client(client):
    for dyna in (False, True):
        calls = list(sequence_calls(dyna, "1002" if dyna else str(uuid.uuid4())))

        async def requests(calls=calls):
            for number, call in enumerate(calls):
                yield {**call, "request_id": f"{call['sequence_id']}_{number}"}

        results = []
        async for result, error in client.stream_infer(requests()):
            assert error is None, error
            results.append(result.as_numpy("OUTPUT")[0][0])
        assert results == expected_of_sequences(dyna), results


def simple_grpc_cudashm_client(client):
    client.unregister_cuda_shared_memory()
    expect_failure(
        lambda: client.register_cuda_shared_memory("output_data", b"aGFuZGxl", 0, 128), "CUDA"
    )


def simple_grpc_custom_repeat(client):
    expect_failure(lambda: client.get_model_config("repeat_int32"), "Request for unknown model")


def main():
    address, *names = sys.argv[1:]
    results = {}
    for name in names:
        example = globals()[name]
        takes_address = example.__code__.co_varnames[:1] == ("address",)
        try:
            if takes_address:
                example(address)
            else:
                with triton.InferenceServerClient(address) as client:
                    example(client)
        except Exception:
            results[name] = traceback.format_exc()
        else:
            results[name] = None
    print(json.dumps(results))


if __name__ == "__main__":
    main()
