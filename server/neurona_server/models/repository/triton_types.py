"""The datatypes of a config.pbtxt. The file is alone since several of its readers need them."""

from neurona_protos import model_config_pb2 as triton
from neurona_protos.prediction_pb2 import DataType

DATA_TYPES = {
    triton.TYPE_BOOL: DataType.DATA_TYPE_BOOL,
    triton.TYPE_UINT8: DataType.DATA_TYPE_UINT8,
    triton.TYPE_UINT16: DataType.DATA_TYPE_UINT16,
    triton.TYPE_UINT32: DataType.DATA_TYPE_UINT32,
    triton.TYPE_UINT64: DataType.DATA_TYPE_UINT64,
    triton.TYPE_INT8: DataType.DATA_TYPE_INT8,
    triton.TYPE_INT16: DataType.DATA_TYPE_INT16,
    triton.TYPE_INT32: DataType.DATA_TYPE_INT32,
    triton.TYPE_INT64: DataType.DATA_TYPE_INT64,
    triton.TYPE_FP16: DataType.DATA_TYPE_FLOAT16,
    triton.TYPE_FP32: DataType.DATA_TYPE_FLOAT,
    triton.TYPE_FP64: DataType.DATA_TYPE_DOUBLE,
    triton.TYPE_STRING: DataType.DATA_TYPE_STRING,
    triton.TYPE_BF16: DataType.DATA_TYPE_BFLOAT16,
}
