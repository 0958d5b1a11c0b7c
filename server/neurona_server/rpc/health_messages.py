"""The messages of grpc.health.v1's List, which the Python package may not have yet.

They are those of health.proto in github.com/grpc/grpc-proto. A second file of that package
would clash with the first in protobuf's default pool, so the package's own file is completed
here, in a pool of its own, and only as far as something is missing in it.
"""

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

_PACKAGE = ".grpc.health.v1."


def _completed(package: FileDescriptor) -> FileDescriptor:
    if "HealthListResponse" in package.message_types_by_name:
        return package
    file = FileDescriptorProto()
    package.CopyToProto(file)
    file.message_type.add(name="HealthListRequest")
    response = file.message_type.add(name="HealthListResponse")
    # map<string, HealthCheckResponse> statuses = 1, which is a list of pairs on the wire.
    entry = response.nested_type.add(name="StatusesEntry")
    entry.options.map_entry = True
    one, many = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED
    text, message = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_MESSAGE
    entry.field.add(name="key", number=1, label=one, type=text)
    checked, pair = "HealthCheckResponse", "HealthListResponse.StatusesEntry"
    entry.field.add(name="value", number=2, label=one, type=message, type_name=_PACKAGE + checked)
    response.field.add(
        name="statuses", number=1, label=many, type=message, type_name=_PACKAGE + pair
    )
    file.service[0].method.add(
        name="List",
        input_type=_PACKAGE + "HealthListRequest",
        output_type=_PACKAGE + "HealthListResponse",
    )
    pool = DescriptorPool()
    pool.Add(file)
    return pool.FindFileByName(file.name)


FILE = _completed(health_pb2.DESCRIPTOR)
HealthListRequest: Any = GetMessageClass(FILE.message_types_by_name["HealthListRequest"])
HealthListResponse: Any = GetMessageClass(FILE.message_types_by_name["HealthListResponse"])


def listed(states: Mapping[str, int]) -> bytes:
    """A HealthListResponse with the state of every name."""
    response = HealthListResponse()
    for name, state in states.items():
        response.statuses[name].status = state
    serialized: bytes = response.SerializeToString(deterministic=True)
    return serialized
