"""JSON of the protocol's messages that have no tensors, in both directions.

Responses have what Triton's JSON has: integers of 64 bits as numbers, and fields with their
defaults. `google.protobuf.json_format` writes the former as texts.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from google.protobuf.message import Message

from neurona_protos import open_inference_pb2 as pb
from neurona_server.errors import InvalidArgumentError, quoted

_FILE_PREFIX = "file:"

Body = TypeVar("Body")
Scalar = bool | int | float | str


class IndexBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request for the index of the repository."""

    ready: bool = False
    """List only versions that are ready."""


class LoadBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request to load a model."""

    parameters: dict[str, Scalar] = {}
    """`config`: a model configuration as JSON; `file:PATH`: the base64 of a file."""


class UnloadBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request to unload a model."""

    parameters: dict[str, Scalar] = {}
    """`unload_dependents`, which has no effect: no model has any."""


class SystemRegionBody(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a POSIX shared memory object."""

    key: str
    byte_size: int
    offset: int = 0


class CudaHandle(msgspec.Struct, forbid_unknown_fields=True):
    """A cudaIpcMemHandle_t."""

    b64: str


class CudaRegionBody(msgspec.Struct, forbid_unknown_fields=True):
    """Memory of a GPU."""

    raw_handle: CudaHandle
    byte_size: int
    device_id: int = 0


TraceBody = dict[str, str | int | list[str] | None]
LogBody = dict[str, Scalar]


def parse_body(kind: type[Body], content: bytes) -> Body:
    """Parse the body of a request; nothing stands for an empty object.

    Raises:
        InvalidArgumentError: It is not JSON of this kind.
    """
    try:
        return msgspec.json.decode(content or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise InvalidArgumentError(f"invalid request: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgumentError(f"invalid JSON: {error}") from None


def load_request(model: str, content: bytes) -> pb.RepositoryModelLoadRequest:
    """Return the message of a request to load a model. Raises InvalidArgumentError."""
    message = pb.RepositoryModelLoadRequest(model_name=model)
    for name, value in parse_body(LoadBody, content).parameters.items():
        if name.startswith(_FILE_PREFIX):
            message.parameters[name].bytes_param = _decode_base64(
                f"parameter {quoted(name)}", value
            )
        else:
            _set_parameter(message.parameters, name, value)
    return message


def unload_request(model: str, content: bytes) -> pb.RepositoryModelUnloadRequest:
    """Return the message of a request to unload a model. Raises InvalidArgumentError."""
    message = pb.RepositoryModelUnloadRequest(model_name=model)
    for name, value in parse_body(UnloadBody, content).parameters.items():
        _set_parameter(message.parameters, name, value)
    return message


def system_region_request(name: str, content: bytes) -> pb.SystemSharedMemoryRegisterRequest:
    """Return the message of a request to register a region. Raises InvalidArgumentError."""
    body = parse_body(SystemRegionBody, content)
    return pb.SystemSharedMemoryRegisterRequest(
        name=name,
        key=body.key,
        offset=_unsigned("offset", body.offset),
        byte_size=_unsigned("byte_size", body.byte_size),
    )


def cuda_region_request(name: str, content: bytes) -> pb.CudaSharedMemoryRegisterRequest:
    """Return the message of a request to register a region. Raises InvalidArgumentError."""
    body = parse_body(CudaRegionBody, content)
    if not -(1 << 63) <= body.device_id < 1 << 63:
        raise InvalidArgumentError(f"device_id is {body.device_id} (expected the number of a GPU)")
    return pb.CudaSharedMemoryRegisterRequest(
        name=name,
        raw_handle=_decode_base64("raw_handle", body.raw_handle.b64),
        device_id=body.device_id,
        byte_size=_unsigned("byte_size", body.byte_size),
    )


def trace_request(model: str, content: bytes) -> pb.TraceSettingRequest:
    """Return the message of a request to change trace settings. Raises InvalidArgumentError."""
    message = pb.TraceSettingRequest(model_name=model)
    for name, value in parse_body(TraceBody, content).items():
        setting = message.settings[name]
        if isinstance(value, list):
            setting.value.extend(value)
        elif value is not None:  # which resets it
            setting.value.append(str(value))
    return message


def log_request(content: bytes) -> pb.LogSettingsRequest:
    """Return the message of a request to change log settings. Raises InvalidArgumentError."""
    message = pb.LogSettingsRequest()
    for name, value in parse_body(LogBody, content).items():
        setting = message.settings[name]
        if isinstance(value, bool):
            setting.bool_param = value
        elif isinstance(value, str):
            setting.string_param = value
        elif isinstance(value, int) and 0 <= value < 1 << 32:
            setting.uint32_param = value
        else:
            raise InvalidArgumentError(
                f"log setting {quoted(name)} is {value} (expected true, false, a text or an "
                "integer of 32 bits)"
            )
    return message


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a response: the level of traces is a list, each other a value."""
    plain: dict[str, Any] = {}
    for name, setting in settings.items():
        if isinstance(setting, pb.TraceSettingResponse.SettingValue):
            values = list(setting.value)
            plain[name] = values if name == "trace_level" else "".join(values[:1])
        else:
            kind = setting.WhichOneof("parameter_choice")
            plain[name] = None if kind is None else getattr(setting, kind)
    return plain


def plain_message(message: Message) -> dict[str, Any]:
    """Return a message for JSON, with the names of the protocol.

    Fields with their default are included, except messages that are not set and members of a
    choice that was not made.
    """
    plain: dict[str, Any] = {}
    descriptor: Any = message.DESCRIPTOR
    for field in descriptor.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            values = field.message_type.fields_by_name["value"]
            plain[field.name] = {str(key): _plain_value(values, value[key]) for key in value}
        elif field.is_repeated:
            plain[field.name] = [_plain_value(field, one) for one in value]
        else:
            plain[field.name] = _plain_value(field, value)
    return plain


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain_message(value)
    if field.enum_type is not None:
        by_number = field.enum_type.values_by_number
        return by_number[value].name if value in by_number else value
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _set_parameter(target: Mapping[str, Any], name: str, value: Scalar) -> None:
    if isinstance(value, bool):
        target[name].bool_param = value
    elif isinstance(value, str):
        target[name].string_param = value
    elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        target[name].int64_param = value
    else:
        raise InvalidArgumentError(
            f"parameter {quoted(name)} is {value} (expected true, false, a text or an integer of "
            "64 bits)"
        )


def _decode_base64(what: str, value: Scalar) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgumentError(f"{what} is not base64") from None


def _unsigned(name: str, value: int) -> int:
    if not 0 <= value < 1 << 64:
        raise InvalidArgumentError(f"{name} is {value} (expected 0 or more, of 64 bits)")
    return value
