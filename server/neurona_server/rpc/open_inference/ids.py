"""The ids of requests: all that differs, besides the data, between those that are alike."""

from neurona_protos.open_inference_pb2 import ModelInferRequest

_TEXT = 2  # the wire type
_ID = ModelInferRequest.DESCRIPTOR.fields_by_name["id"].number << 3 | _TEXT
_BEFORE = [
    ModelInferRequest.DESCRIPTOR.fields_by_name[name].number << 3 | _TEXT
    for name in ("model_name", "model_version")
]


def without_id(message: bytes) -> tuple[str, bytes]:
    """The id of a ModelInferRequest and the message without it, where the id stands as everybody
    writes it, behind what says the model; else "" and all of the message.

    Whoever reads the rest sees by its own id whether another one stands elsewhere.
    """
    position, end = 0, len(message)
    while position + 1 < end:
        tag, length = message[position], message[position + 1]
        stop = position + 2 + length
        if length > 0x7F or stop > end:
            break
        if tag == _ID:
            try:
                name = message[position + 2 : stop].decode()
            except UnicodeDecodeError:  # no request: its reader says so
                break
            return name, message[:position] + message[stop:]
        if tag not in _BEFORE:
            break
        position = stop
    return "", message
