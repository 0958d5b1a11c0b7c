"""Run by a Python that has tritonclient: `http_examples_driver.py ADDRESS EXAMPLES...`.

Each function makes the calls of one of Triton's Python examples for HTTP and fails where the
example would. Prints a JSON object: the error of each example, or null.
"""

import asyncio
import inspect
import json
import sys
import traceback
import uuid

import numpy as np
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, serialize_byte_tensor, shared_memory

LEFT = np.arange(16, dtype=np.int32).reshape(1, 16)
RIGHT = np.ones((1, 16), np.int32)
QUERY = {"test_1": 1, "test_2": 2}
VALUES = [11, 7, 5, 3, 2, 0, 1]


def tensor(name, array, kind="INT32", *, binary=True, module=triton):
    infer_input = module.InferInput(name, list(array.shape), kind)
    return infer_input.set_data_from_numpy(array, binary_data=binary)


def infer_inputs(left=LEFT, right=RIGHT, kind="INT32", module=triton):
    return [
        tensor("INPUT0", left, kind, binary=False, module=module),
        tensor("INPUT1", right, kind, binary=True, module=module),
    ]


def requested(module=triton):
    return [
        module.InferRequestedOutput("OUTPUT0", binary_data=True),
        module.InferRequestedOutput("OUTPUT1", binary_data=False),
    ]


def texts(array):
    return np.array([str(n).encode() for n in array.ravel()], object).reshape(1, 16)


def numbers(array):
    return np.array([int(text) for text in array.ravel()]).reshape(1, 16)


def check(result, left=LEFT, right=RIGHT):
    assert (result.as_numpy("OUTPUT0") == left + right).all()
    assert (result.as_numpy("OUTPUT1") == left - right).all()


def check_arrays(arrays):
    assert (arrays[0] == LEFT + RIGHT).all()
    assert (arrays[1] == LEFT - RIGHT).all()


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


def simple_http_infer_client(client):
    for algorithm in (None, "gzip", "deflate"):
        options = {
            "query_params": QUERY,
            "headers": {"test": "1"},
            "request_compression_algorithm": algorithm,
            "response_compression_algorithm": algorithm,
        }
        check(client.infer("simple", infer_inputs(), outputs=requested(), **options))
        check(client.infer("simple", infer_inputs(), outputs=None, **options))
    statistics = client.get_inference_statistics("simple", headers={"test": "1"})
    assert len(statistics["model_stats"]) == 1
    error = error_of(lambda: client.infer("wrong_model_name", infer_inputs()))
    assert error.message().startswith("Request for unknown model"), error


def simple_http_async_infer_client(address):
    with triton.InferenceServerClient(address, concurrency=4) as client:
        calls = [
            client.async_infer("simple", infer_inputs(), outputs=requested()) for _ in range(8)
        ]
        for call in calls:
            check(call.get_result())


def simple_http_string_infer_client(client):
    inputs = infer_inputs(texts(LEFT), texts(RIGHT), "BYTES")
    result = client.infer("simple_string", inputs, outputs=requested())
    check_arrays([numbers(result.as_numpy(name)) for name in ("OUTPUT0", "OUTPUT1")])
    # A second part of the example: NUL bytes, in both forms.
    for binary in (True, False):
        for values in (np.array([[b"he\0llo"] * 16], object), np.array([[b"\0\1\2\3"] * 16])):
            output = triton.InferRequestedOutput("OUTPUT0", binary_data=binary)
            inputs = [tensor("INPUT0", values, "BYTES", binary=binary)]
            echo = client.infer("simple_identity", inputs, outputs=[output]).as_numpy("OUTPUT0")
            assert [getattr(one, "encode", lambda one=one: one)() for one in echo.ravel()] == list(
                values.ravel()
            )


def simple_http_health_metadata(client):
    assert client.is_server_live(query_params=QUERY)
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert client.get_model_metadata("simple", query_params=QUERY)["name"] == "simple"
    expect_failure(
        lambda: client.get_model_metadata("wrong_model_name"), "Request for unknown model"
    )
    # The example does this before, and stops.
    assert client.get_server_metadata()["name"] == "triton", "named neurona"


def with_regions(client, sizes, use):
    """Call `use` with the handles of registered regions, by their names."""
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    handles = {}
    try:
        for name, size in sizes.items():
            key = "/neurona_http_example_" + name
            handles[name] = shared_memory.create_shared_memory_region(name, key, size)
            client.register_system_shared_memory(name, key, size)
        use(handles)
        regions = client.get_system_shared_memory_status()
        assert sorted(region["name"] for region in regions) == sorted(sizes)
        client.unregister_system_shared_memory()
        assert client.get_system_shared_memory_status() == []
    finally:
        for handle in handles.values():
            shared_memory.destroy_shared_memory_region(handle)


def shared_tensors(input_places, output_places, kind):
    inputs, outputs = [], requested()
    for index, (region, size, offset) in enumerate(input_places):
        inputs.append(triton.InferInput(f"INPUT{index}", [1, 16], kind))
        inputs[-1].set_shared_memory(region, size, offset=offset)
    for output, (region, size, offset) in zip(outputs, output_places, strict=True):
        output.set_shared_memory(region, size, offset=offset)
    return inputs, outputs


def simple_http_shm_client(client):
    size = LEFT.nbytes

    def use(handles):
        shared_memory.set_shared_memory_region(handles["input_data"], [LEFT])
        shared_memory.set_shared_memory_region(handles["input_data"], [RIGHT], offset=size)
        places = [[(name, size, 0), (name, size, size)] for name in ("input_data", "output_data")]
        inputs, outputs = shared_tensors(*places, "INT32")
        result = client.infer("simple", inputs, outputs=outputs)
        assert result.get_output("OUTPUT0")["shape"] == [1, 16]
        read = shared_memory.get_contents_as_numpy
        check_arrays(
            [
                read(handles["output_data"], np.int32, [1, 16], offset=index * size).copy()
                for index in range(2)
            ]
        )

    with_regions(client, {"output_data": size * 2, "input_data": size * 2}, use)


def simple_http_shm_string_client(client):
    contents = [serialize_byte_tensor(texts(array)) for array in (LEFT, RIGHT)]
    sizes = {f"string{index}": len(one.item()) for index, one in enumerate(contents)}

    def use(handles):
        for index, content in enumerate(contents):
            shared_memory.set_shared_memory_region(handles[f"string{index}"], [content])
        outputs = [("strings", 256, 0), ("strings", 256, 256)]
        inputs = [(name, size, 0) for name, size in sizes.items()]
        inputs, outputs = shared_tensors(inputs, outputs, "BYTES")
        client.infer("simple_string", inputs, outputs=outputs)
        read = shared_memory.get_contents_as_numpy
        check_arrays(
            [
                numbers(read(handles["strings"], np.object_, [1, 16], offset=256 * index))
                for index in range(2)
            ]
        )

    with_regions(client, {**sizes, "strings": 512}, use)


def simple_http_cudashm_client(client):
    client.unregister_cuda_shared_memory()
    expect_failure(
        lambda: client.register_cuda_shared_memory("output_data", "aGFuZGxl", 0, 128), "CUDA"
    )
    assert client.get_cuda_shared_memory_status() == []


def reuse_infer_objects_client(client):
    inputs, outputs = infer_inputs(), requested()
    for _ in range(3):
        check(client.infer("simple", inputs, outputs=outputs))
    inputs[0].set_data_from_numpy(LEFT * 2)
    check(client.infer("simple", inputs, outputs=outputs), LEFT * 2)


def memory_growth_test(client):
    for _ in range(100):
        check(client.infer("simple", infer_inputs(), outputs=requested()))


def image_client(address):
    """The checks of `parse_model`, and requests in both ways."""
    with triton.InferenceServerClient(address, concurrency=4) as client:
        metadata = client.get_model_metadata("densenet_onnx")
        config = client.get_model_config("densenet_onnx")
        assert (len(metadata["inputs"]), len(metadata["outputs"])) == (1, 1)
        assert metadata["outputs"][0]["datatype"] == "FP32"
        assert sum(size > 1 for size in metadata["outputs"][0]["shape"]) <= 1
        assert config["max_batch_size"] == 0
        assert config["input"][0]["format"] == "FORMAT_NCHW"
        channels, height, width = metadata["inputs"][0]["shape"]
        image = np.full((channels, height, width), 0.5, np.float32)
        inputs = [tensor("data_0", image, "FP32")]
        outputs = [triton.InferRequestedOutput("fc6_1", class_count=3)]
        options = {"outputs": outputs, "request_id": "1"}
        pending = client.async_infer("densenet_onnx", inputs, **options)
        for result in (client.infer("densenet_onnx", inputs, **options), pending.get_result()):
            assert result.get_response()["id"] == "1"
            rows = [text.decode().split(":") for text in result.as_numpy("fc6_1")]
            assert [row[1:] for row in rows] == [[str(i), f"LABEL {i}"] for i in (9, 8, 7)]


def ensemble_image_client(client):
    expect_failure(
        lambda: client.get_model_metadata("preprocess_inception_ensemble"),
        "Request for unknown model",
    )


def sequence_calls(dyna, module=triton):
    """Yield the arguments of the requests of three sequences, the last with a string as its id."""
    string_id = "1002" if dyna else str(uuid.uuid4())
    models = ["simple_dyna_sequence" if dyna else "simple_sequence"] * 2
    models.append("simple_string_dyna_sequence" if dyna else "simple_sequence")
    starts = (0, 100, 20)
    for index, (model, sequence_id) in enumerate(zip(models, (1000, 1001, string_id), strict=True)):
        values = [starts[index], *(value if index == 0 else -value for value in VALUES)]
        for number, value in enumerate(values):
            array = np.full([1, 1], value, np.int32)
            yield {
                "model_name": model,
                "inputs": [tensor("INPUT", array, module=module)],
                "outputs": [module.InferRequestedOutput("OUTPUT")],
                "sequence_id": sequence_id,
                "sequence_start": number == 0,
                "sequence_end": number == len(values) - 1,
            }


def expected_of_sequences(dyna):
    """Return what the examples expect of each request, in the order of the calls."""
    expected = []
    for start, sign, sequence_id in ((0, 1, 1000), (100, -1, 1001), (20, -1, 1002)):
        values = [start, *(sign * value for value in VALUES)]
        if dyna and sequence_id == 1002:
            results = np.cumsum(values)
        else:
            results = np.array(values)
            results[0] += 1
        if dyna:
            results[-1] += sequence_id
        expected += results.tolist()
    return expected


def simple_http_sequence_sync_infer_client(client):
    for dyna in (False, True):
        results = [client.infer(**call).as_numpy("OUTPUT")[0][0] for call in sequence_calls(dyna)]
        assert results == expected_of_sequences(dyna), results


def with_aio(example):
    def run(address):
        async def main():
            async with triton_aio.InferenceServerClient(address) as client:
                await example(client)

        asyncio.run(main())

    run.__name__ = example.__name__
    return run


@with_aio
async def simple_http_aio_infer_client(client):
    for algorithm in (None, "gzip", "deflate"):
        check(
            await client.infer(
                "simple",
                infer_inputs(module=triton_aio),
                outputs=requested(triton_aio),
                query_params=QUERY,
                request_compression_algorithm=algorithm,
                response_compression_algorithm=algorithm,
            )
        )
    statistics = await client.get_inference_statistics("simple")
    assert len(statistics["model_stats"]) == 1
    await expect_async_failure(
        client.infer("wrong_model_name", infer_inputs(module=triton_aio)),
        "Request for unknown model",
    )


@with_aio
async def simple_http_aio_string_infer_client(client):
    inputs = infer_inputs(texts(LEFT), texts(RIGHT), "BYTES", triton_aio)
    result = await client.infer("simple_string", inputs, outputs=requested(triton_aio))
    check_arrays([numbers(result.as_numpy(name)) for name in ("OUTPUT0", "OUTPUT1")])


@with_aio
async def simple_http_aio_health_metadata(client):
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("simple")
    assert (await client.get_model_metadata("simple"))["name"] == "simple"
    await expect_async_failure(
        client.get_model_metadata("wrong_model_name"), "Request for unknown model"
    )
    assert (await client.get_server_metadata())["name"] == "triton", "named neurona"


@with_aio
async def simple_http_aio_sequence_sync_infer_client(client):
    for dyna in (False, True):
        results = [await client.infer(**call) for call in sequence_calls(dyna, triton_aio)]
        values = [result.as_numpy("OUTPUT")[0][0] for result in results]
        assert values == expected_of_sequences(dyna), values


class Blocking:
    """Makes the calls of an asynchronous client one after the other."""

    def __init__(self, client, loop):
        self._client = client
        self._loop = loop

    def __getattr__(self, name):
        function = getattr(self._client, name)
        return lambda *args, **options: self._loop.run_until_complete(function(*args, **options))


def blocking(example):
    """Return an example that makes the calls of another one with the asynchronous client."""

    def run(address):
        loop = asyncio.new_event_loop()

        async def make():
            return triton_aio.InferenceServerClient(address)

        client = Blocking(loop.run_until_complete(make()), loop)
        try:
            example(client)
        finally:
            client.close()
            loop.close()

    return run


simple_http_aio_shm_client = blocking(simple_http_shm_client)
simple_http_aio_shm_string_client = blocking(simple_http_shm_string_client)
simple_http_aio_cudashm_client = blocking(simple_http_cudashm_client)

MODELS = 9
INVALID_CONFIG = '"parameters": {"config": {{"max_batch_size": "16"}}}'
CONFIG = '{"max_batch_size":"16"}'


def simple_http_model_control(client):
    assert len(client.get_model_repository_index()) == MODELS
    client.load_model("simple")
    assert client.is_model_ready("simple")
    expect_failure(lambda: client.load_model("simple", config=INVALID_CONFIG), "failed to load")
    client.load_model("simple", config=CONFIG)
    assert client.get_model_config("simple")["max_batch_size"] == 16
    client.unload_model("simple")
    assert not client.is_model_ready("simple")
    files = {"file:" + "A" * 256: b"a"}
    expect_failure(
        lambda: client.load_model("simple", config="{}", files=files), "Invalid file path"
    )
    expect_failure(lambda: client.load_model("wrong_model_name"), "failed to load")


@with_aio
async def simple_http_aio_model_control(client):
    assert len(await client.get_model_repository_index()) == MODELS
    await client.load_model("simple")
    assert await client.is_model_ready("simple")
    await expect_async_failure(client.load_model("simple", config=INVALID_CONFIG), "failed to load")
    await client.load_model("simple", config=CONFIG)
    assert (await client.get_model_config("simple"))["max_batch_size"] == 16
    await client.unload_model("simple")
    assert not await client.is_model_ready("simple")
    await expect_async_failure(client.load_model("wrong_model_name"), "failed to load")


def main():
    address, *names = sys.argv[1:]
    results = {}
    for name in names:
        example = globals()[name]
        try:
            if "address" in inspect.signature(example).parameters:
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
