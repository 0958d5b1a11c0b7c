"""The names that the protocol has for element types."""

from neurona_protos.prediction_pb2 import DataType
from neurona_server.errors import InvalidError, quoted

NAMES: dict[DataType, str] = {
    DataType.DATA_TYPE_BOOL: "BOOL",
    DataType.DATA_TYPE_UINT8: "UINT8",
    DataType.DATA_TYPE_UINT16: "UINT16",
    DataType.DATA_TYPE_UINT32: "UINT32",
    DataType.DATA_TYPE_UINT64: "UINT64",
    DataType.DATA_TYPE_INT8: "INT8",
    DataType.DATA_TYPE_INT16: "INT16",
    DataType.DATA_TYPE_INT32: "INT32",
    DataType.DATA_TYPE_INT64: "INT64",
    DataType.DATA_TYPE_FLOAT16: "FP16",
    DataType.DATA_TYPE_FLOAT: "FP32",
    DataType.DATA_TYPE_DOUBLE: "FP64",
    DataType.DATA_TYPE_STRING: "BYTES",
    DataType.DATA_TYPE_BFLOAT16: "BF16",
}
_NUMBERS = {name: number for number, name in NAMES.items()}


def number_of(name: str, of: str) -> DataType:
    """Raises InvalidError that names the input `of`."""
    number = _NUMBERS.get(name)
    if number is None:
        raise InvalidError(
            f"input {quoted(of)} has datatype {quoted(name)}; expected one of "
            + ", ".join(_NUMBERS)
        )
    return number


def config_type(number: DataType) -> str:
    """As a ModelConfig says it: BYTES is STRING there."""
    name = NAMES[number]
    return "TYPE_" + ("STRING" if name == "BYTES" else name)
