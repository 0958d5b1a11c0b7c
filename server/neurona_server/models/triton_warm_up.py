"""The warm-up samples of a config.pbtxt."""

import math
from pathlib import Path

from neurona_protos import model_config_pb2 as triton
from neurona_protos.prediction_pb2 import DataType
from neurona_server.errors import LoadError, quoted
from neurona_server.models.beside import find_beside
from neurona_server.models.samples import MOST_ELEMENTS
from neurona_server.models.settings import WarmUpInput, WarmUpSample

FOLDER = "warmup"
"""Where the files of samples stand, in the model's folder."""

MOST_RUNS = 10_000
"""Of one sample; a load must end."""

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


def read_warm_up(folder: Path, config: triton.ModelConfig) -> tuple[WarmUpSample, ...]:
    """Raises LoadError that names the field. Files are found now and read when they are run."""
    return tuple(
        _sample(folder, f"model_warmup[{index}]", sample, config.max_batch_size)
        for index, sample in enumerate(config.model_warmup)
        if sample.batch_size or not config.max_batch_size  # Triton passes over one without rows
    )


def _sample(folder: Path, where: str, sample: triton.ModelWarmup, most_rows: int) -> WarmUpSample:
    rows = sample.batch_size or 1
    if rows > max(1, most_rows):
        raise LoadError(f"{where}.batch_size is {rows}; expected at most {max(1, most_rows)}")
    if sample.count > MOST_RUNS:
        raise LoadError(f"{where}.count is {sample.count}; expected at most {MOST_RUNS}")
    inputs = {
        name: _input(folder, f"{where}.inputs.{quoted(name)}", one, rows if most_rows else 0)
        for name, one in sample.inputs.items()
    }
    return WarmUpSample(sample.name, max(1, sample.count), inputs)


def _input(folder: Path, where: str, one: triton.ModelWarmup.Input, rows: int) -> WarmUpInput:
    """`rows` is 0 for a model without a batch axis."""
    if one.data_type not in DATA_TYPES:
        raise LoadError(f"{where} has no data_type")
    shape = (rows, *one.dims) if rows else tuple(one.dims)
    if any(size < 1 for size in shape) or math.prod(shape) > MOST_ELEMENTS:
        raise LoadError(
            f"{where}.dims is {[*one.dims]}; expected sizes of at least 1, "
            f"and {MOST_ELEMENTS} elements at most"
        )
    kind = one.WhichOneof("input_data_type")
    if kind is None or (kind != "input_data_file" and not getattr(one, kind)):
        raise LoadError(f"{where} has no data; expected zero_data, random_data or input_data_file")
    file = None
    if kind == "input_data_file":
        try:
            if not one.input_data_file:
                raise LoadError("it is empty; expected the name of a file")
            file = find_beside(folder / FOLDER, one.input_data_file)
        except LoadError as error:
            raise LoadError(f"{where}.input_data_file: {error}") from error
    dtype = DATA_TYPES[one.data_type]
    return WarmUpInput(dtype, shape, random=kind == "random_data", file=file, rows=rows)
