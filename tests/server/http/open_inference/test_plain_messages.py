import base64

import pytest

from neurona_protos import open_inference_pb2 as pb
from neurona_protos.model_config_pb2 import ModelConfig, ModelInput, ModelInstanceGroup
from neurona_server.errors import InvalidArgumentError
from neurona_server.http.open_inference import plain_messages
from neurona_server.http.open_inference.plain_messages import plain_message


def test_messages_have_numbers_names_and_defaults():
    config = ModelConfig(
        name="net",
        input=[ModelInput(name="x", dims=[-1, 2**40])],
        instance_group=[ModelInstanceGroup(kind=ModelInstanceGroup.KIND_CPU)],
    )
    config.parameters["a"].string_value = "b"
    plain = plain_message(config)
    assert plain["name"] == "net"
    assert plain["max_batch_size"] == 0
    assert plain["input"][0]["dims"] == [-1, 2**40]
    assert plain["input"][0]["optional"] is False
    assert plain["instance_group"][0]["kind"] == "KIND_CPU"
    assert plain["parameters"] == {"a": {"string_value": "b"}}
    assert "dynamic_batching" not in plain
    assert "version_policy" not in plain


def test_bytes_are_base64():
    message = pb.CudaSharedMemoryRegisterRequest(raw_handle=b"\0\1")
    assert plain_message(message)["raw_handle"] == "AAE="


def test_load_and_unload():
    content = base64.b64encode(b"\0model").decode()
    body = f'{{"parameters":{{"config":"{{}}","file:1/model.onnx":"{content}"}}}}'.encode()
    message = plain_messages.load_request("net", body)
    assert message.model_name == "net"
    assert message.parameters["config"].string_param == "{}"
    assert message.parameters["file:1/model.onnx"].bytes_param == b"\0model"
    assert not plain_messages.load_request("net", b"").parameters
    message = plain_messages.unload_request("net", b'{"parameters":{"unload_dependents":true}}')
    assert message.parameters["unload_dependents"].bool_param


def test_settings():
    message = plain_messages.trace_request(
        "net", b'{"trace_level":["OFF","MAX"],"trace_rate":"5","trace_count":7,"trace_file":null}'
    )
    assert {name: list(one.value) for name, one in message.settings.items()} == {
        "trace_level": ["OFF", "MAX"],
        "trace_rate": ["5"],
        "trace_count": ["7"],
        "trace_file": [],
    }
    message = plain_messages.log_request(b'{"log_info":false,"log_verbose_level":1,"log_file":""}')
    assert message.settings["log_verbose_level"].uint32_param == 1
    assert message.settings["log_file"].WhichOneof("parameter_choice") == "string_param"


def test_regions():
    message = plain_messages.system_region_request("a", b'{"key":"/k","byte_size":8}')
    assert message == pb.SystemSharedMemoryRegisterRequest(name="a", key="/k", byte_size=8)
    message = plain_messages.cuda_region_request(
        "a", b'{"raw_handle":{"b64":"AAE="},"device_id":1,"byte_size":8}'
    )
    assert message.raw_handle == b"\0\1"


@pytest.mark.parametrize(
    ("make", "body", "reason"),
    [
        (plain_messages.log_request, b"{", "invalid JSON"),
        (plain_messages.log_request, b'{"a":1.5}', "'a' is 1.5 (expected true"),
        (plain_messages.log_request, b'{"a":-1}', "'a' is -1"),
        (plain_messages.log_request, b'{"a":null}', "invalid request"),
        (plain_messages.log_request, b'{"a":"\xff"}', "invalid"),
        (lambda b: plain_messages.load_request("a", b), b'{"more":1}', "unknown field `more`"),
        (
            lambda b: plain_messages.load_request("a", b),
            b'{"parameters":{"file:x":"?"}}',
            "parameter 'file:x' is not base64",
        ),
        (
            lambda b: plain_messages.unload_request("a", b),
            b'{"parameters":{"x":1.5}}',
            "'x' is 1.5",
        ),
        (
            lambda b: plain_messages.system_region_request("a", b),
            b'{"key":"k","byte_size":-1}',
            "byte_size is -1",
        ),
        (
            lambda b: plain_messages.cuda_region_request("a", b),
            b'{"raw_handle":{"b64":"AA=="},"byte_size":1,"device_id":9223372036854775808}',
            "device_id is 9223372036854775808",
        ),
    ],
)
def test_errors_say_what_is_wrong(make, body, reason):
    with pytest.raises(InvalidArgumentError) as raised:
        make(body)
    assert reason in str(raised.value)
