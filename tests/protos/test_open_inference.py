"""The .proto files of the Open Inference Protocol match tritonclient's, field by field."""

import base64
import json

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from support import triton_clients

from neurona_protos import model_config_pb2, open_inference_pb2

NOT_TRITONS = ("PropertiesEntry", ".properties", "RepositoryModelLoadResponse.", "UnloadResponse.")
"""KServe's: fields of messages in which Triton has none of that number."""

DUMP = """
import base64, json
from tritonclient.grpc import model_config_pb2, service_pb2
files = [model_config_pb2, service_pb2]
print(json.dumps([base64.b64encode(f.DESCRIPTOR.serialized_pb).decode() for f in files]))
"""


def wire_facts(file):
    """Everything in a file that affects the bytes on the wire, as a set of tuples."""
    facts = set()
    _enums(facts, file.package, file.enum_type)
    for message in file.message_type:
        _message(facts, file.package, message)
    for service in file.service:
        for rpc in service.method:
            facts.add(
                (
                    f"/{file.package}.{service.name}/{rpc.name}",
                    rpc.input_type,
                    rpc.output_type,
                    rpc.client_streaming,
                    rpc.server_streaming,
                )
            )
    return facts


def _message(facts, parent, message):
    path = f"{parent}.{message.name}"
    facts.add((path, "message", message.options.map_entry))
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        packed = field.options.packed if field.options.HasField("packed") else None
        facts.add(
            (
                f"{path}.{field.name}",
                field.number,
                field.Type.Name(field.type),
                field.Label.Name(field.label),
                field.type_name,
                oneof,
                field.proto3_optional,
                packed,
            )
        )
    _enums(facts, path, message.enum_type)
    for nested in message.nested_type:
        _message(facts, path, nested)


def _enums(facts, parent, enums):
    for enum in enums:
        facts |= {(f"{parent}.{enum.name}", value.name, value.number) for value in enum.value}


@pytest.fixture(scope="module")
def theirs():
    return [
        FileDescriptorProto.FromString(base64.b64decode(text))
        for text in json.loads(triton_clients.run("-c", DUMP))
    ]


@pytest.mark.parametrize(
    ("index", "module"), [(0, model_config_pb2), (1, open_inference_pb2)], ids=["config", "service"]
)
def test_every_name_and_number_is_tritons(theirs, index, module):
    ours = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
    assert (ours.package, ours.syntax) == (theirs[index].package, theirs[index].syntax)
    own = {one for one in wire_facts(ours) if any(name in str(one) for name in NOT_TRITONS)}
    assert wire_facts(ours) - own == wire_facts(theirs[index])
    assert len(wire_facts(ours)) > 150


def test_a_wrong_number_is_detected():
    ours = FileDescriptorProto.FromString(open_inference_pb2.DESCRIPTOR.serialized_pb)
    wrong = FileDescriptorProto()
    wrong.CopyFrom(ours)
    wrong.message_type[3].field[0].number += 1
    assert wire_facts(wrong) != wire_facts(ours)
