"""Which fields of a config.pbtxt have no effect here."""

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from neurona_server.errors import printable

Heeded = Mapping[str, Any]
"""By field: None if all of it is heeded, else what is heeded inside it."""

_TENSOR: Heeded = {"name": None, "data_type": None, "dims": None, "reshape": None}
HEEDED: Heeded = {
    "name": None,
    "platform": None,
    "backend": None,
    "max_batch_size": None,
    "input": _TENSOR,
    "output": {**_TENSOR, "label_filename": None},
    "version_policy": None,
    "default_model_filename": None,
    "instance_group": {"count": None, "kind": None, "name": None, "gpus": None, "passive": None},
    "dynamic_batching": {
        "max_queue_delay_microseconds": None,
        "default_queue_policy": {"max_queue_size": None},
    },
    "model_warmup": None,
    "parameters": {"intra_op_thread_count": None},
    # Nothing is heeded in these, but each of their fields is named.
    "optimization": {},
    "response_cache": {},
    "model_transaction_policy": {},
}
_UNBATCHED = {**HEEDED, "dynamic_batching": {}}


def ignored_fields(config: Message) -> list[str]:
    """Paths like "optimization.cuda" or "input[0].format", in the order of the definition.

    A field that holds its default is not there, as protobuf has it.
    """
    heeded = HEEDED if getattr(config, "max_batch_size", 0) else _UNBATCHED
    return list(_walk(config, heeded, ""))


def _walk(message: Message, heeded: Heeded, prefix: str) -> Iterator[str]:
    for field, value in message.ListFields():
        path = prefix + field.name
        if field.name not in heeded:
            yield path
        elif (inside := heeded[field.name]) is not None:
            if _is_map(field):
                unheeded = sorted(key for key in value if key not in inside)
                yield from (f"{path}.{printable(key)}" for key in unheeded)
            elif isinstance(value, Message):
                yield from _walk(value, inside, f"{path}.")
            else:
                for index, item in enumerate(value):
                    yield from _walk(item, inside, f"{path}[{index}].")


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
