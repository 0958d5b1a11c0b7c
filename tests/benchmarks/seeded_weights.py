"""Networks without their weights, which are drawn again from a seed where they are used.

A machine with a GPU may have no network, and what is brought to it a limit of some MiB, where the
weights of a ResNet-50 have 98. Time does not depend on what they are, and answers of two devices
can be compared for any: so each large tensor is replaced by its mean and its deviation, from which
`expand_network` draws a tensor like it. It needs numpy alone, and the same seed gives the same
weights with any of its versions: only the bits of PCG64 are used, which numpy guarantees.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 2026
MIN_BYTES = 16 << 10
"""Smaller tensors stay in the file as they are."""

MAX_DISTINCT = 16
"""A tensor of so few distinct values is a mask or a table: it stays as well."""

MODEL, SPECIFICATIONS, WEIGHTS = "model.onnx", "weights.json", "weights.bin"
LIST, ROWS = "networks.json", "rows.npz"
EXAMPLES = 32
"""Rows of its inputs that a network has."""

_ALIGNMENT = 64
_DTYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "uint8": np.uint8}


def strip_network(content: bytes, folder: Path) -> None:
    """Writes a network without its large tensors into `folder`, and what they were like beside it.

    Args:
        content: An ONNX file with everything inside.
        folder: Gets model.onnx, whose tensors are in a file weights.bin that is not written, and
            weights.json.
    """
    import onnx  # which `expand_network` does without

    model = onnx.load_from_string(content)
    specifications: list[dict[str, Any]] = []
    end = 0
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.nbytes < MIN_BYTES or values.dtype.name not in _DTYPES:
            continue
        if len(np.unique(values.reshape(-1)[:4096])) <= MAX_DISTINCT:
            continue
        numbers = values.astype(np.float64)
        specification = {
            "offset": end,
            "count": values.size,
            "dtype": values.dtype.name,
            "mean": float(numbers.mean()),
            "deviation": float(numbers.std()),
        }
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.ClearField("int32_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        place = {"location": WEIGHTS, "offset": end, "length": values.nbytes}
        for key, value in place.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        specifications.append(specification)
        end += -(-values.nbytes // _ALIGNMENT) * _ALIGNMENT
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    (folder / SPECIFICATIONS).write_text(json.dumps(specifications))


def expand_network(folder: Path, target: Path, seed: int = SEED) -> Path:
    """Writes a stripped network with weights into `target`, and returns its model.onnx."""
    target.mkdir(parents=True, exist_ok=True)
    specifications = json.loads((folder / SPECIFICATIONS).read_text())
    if specifications:
        with (target / WEIGHTS).open("wb") as file:
            for number, specification in enumerate(specifications):
                file.seek(specification["offset"])
                file.write(draw_tensor(specification, seed + number).tobytes())
    path = target / MODEL
    path.write_bytes((folder / MODEL).read_bytes())
    return path


def draw_tensor(specification: dict[str, Any], seed: int) -> NDArray[Any]:
    """Returns uniformly distributed values of a tensor's type, mean and deviation."""
    dtype = np.dtype(_DTYPES[specification["dtype"]])
    bits = np.random.PCG64(seed).random_raw(specification["count"])
    values = (bits >> np.uint64(40)).astype(np.float32)  # 24 bits: exact
    values *= np.float32(2**-23)
    values -= np.float32(1)  # -1 to 1
    values *= np.float32(3**0.5 * specification["deviation"])
    values += np.float32(specification["mean"])
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def read_rows(folder: Path, row: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Returns EXAMPLES rows of a network's inputs by name.

    Args:
        folder: Of the stripped network.
        row: The shape of a row of its one input, x; empty if there is a file with the rows.
    """
    if row:
        return {"x": make_rows(row)}
    with np.load(folder / ROWS) as file:
        return dict(file)


def make_rows(row: Sequence[int], count: int = EXAMPLES, seed: int = 1) -> NDArray[np.float32]:
    """Returns rows of this shape; large images have large patches.

    Of noise alone the mean over a whole image, which is what the last layer gets, would be the same
    for each.
    """
    random, row = np.random.default_rng(seed), tuple(row)
    rows = random.normal(0, 1, (count, *row))
    patch = row[-1] // 7
    if len(row) == 3 and row[1:] == (7 * patch, 7 * patch) and patch > 8:
        patches = random.normal(0, 1, (count, row[0], 7, 7))
        rows = 0.3 * rows + patches.repeat(patch, axis=-1).repeat(patch, axis=-2)
    return rows.astype(np.float32)
