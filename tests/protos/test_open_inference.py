"""Our files against the descriptors inside tritonclient, field by field."""

import base64
import json

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from support import triton_clients

from neurona_protos import model_config_pb2, open_inference_pb2

DUMP = """
import base64, json
from tritonclient.grpc import model_config_pb2, service_pb2
files = [model_config_pb2, service_pb2]
print(json.dumps([base64.b64encode(f.DESCRIPTOR.serialized_pb).decode() for f in files]))
"""


def facts(file):
    """Everything of a file that shows on the wire, as a set of tuples."""
    found = set()
    _enums(found, file.package, file.enum_type)
    for message in file.message_type:
        _message(found, file.package, message)
    for service in file.service:
        for rpc in service.method:
            found.add(
                (
                    f"/{file.package}.{service.name}/{rpc.name}",
                    rpc.input_type,
                    rpc.output_type,
                    rpc.client_streaming,
                    rpc.server_streaming,
                )
            )
    return found


def _message(found, parent, message):
    path = f"{parent}.{message.name}"
    found.add((path, "message", message.options.map_entry))
    for field in message.field:
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        packed = field.options.packed if field.options.HasField("packed") else None
        found.add(
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
    _enums(found, path, message.enum_type)
    for nested in message.nested_type:
        _message(found, path, nested)


def _enums(found, parent, enums):
    for enum in enums:
        found |= {(f"{parent}.{enum.name}", value.name, value.number) for value in enum.value}


@pytest.fixture(scope="module")
def theirs():
    return [
        FileDescriptorProto.FromString(base64.b64decode(text))
        for text in json.loads(triton_clients.run("-c", DUMP))
    ]


@pytest.mark.parametrize(
    ("index", "ours"), [(0, model_config_pb2), (1, open_inference_pb2)], ids=["config", "service"]
)
def test_every_name_and_number_is_that_of_triton(theirs, index, ours):
    own = FileDescriptorProto.FromString(ours.DESCRIPTOR.serialized_pb)
    assert (own.package, own.syntax) == (theirs[index].package, theirs[index].syntax)
    assert facts(own) == facts(theirs[index])
    assert len(facts(own)) > 150


def test_a_wrong_number_would_be_seen():
    own = FileDescriptorProto.FromString(open_inference_pb2.DESCRIPTOR.serialized_pb)
    wrong = FileDescriptorProto()
    wrong.CopyFrom(own)
    wrong.message_type[3].field[0].number += 1
    assert facts(wrong) != facts(own)
