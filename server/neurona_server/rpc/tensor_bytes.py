"""A Tensor message inside another one, as bytes: what is large is copied once."""

from functools import lru_cache

from neurona_protos.prediction_pb2 import DataType, Tensor
from neurona_protos.tensors import Array, encode
from neurona_server.rpc.encoding import prefix

_DATA = Tensor.DATA_FIELD_NUMBER


def tensor_bytes(field: int, name: str, dtype: DataType, array: Array) -> list[bytes | memoryview]:
    """The `field` that holds the tensor, in pieces to be joined."""
    data = encode(name, array, dtype)
    head = _head(name, dtype, array.shape)
    if not len(data):
        return [prefix(field, len(head)), head]
    before = prefix(_DATA, len(data))
    return [prefix(field, len(head) + len(before) + len(data)), head, before, data]


@lru_cache(maxsize=1024)
def _head(name: str, dtype: DataType, shape: tuple[int, ...]) -> bytes:
    """All but its data, which stand last."""
    return Tensor(name=name, dtype=dtype, shape=shape).SerializeToString()
