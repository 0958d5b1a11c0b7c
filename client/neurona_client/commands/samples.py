"""Files as the inputs of a model: pictures, arrays, sound. Rows of text are `rows`' work."""

import re
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neurona_client.commands.failures import CommandError
from neurona_client.commands.rows import read_rows
from neurona_client.errors import InvalidInputError

if TYPE_CHECKING:
    from neurona_client.descriptions import Description, TensorSpec
    from neurona_client.inputs import Inputs

PICTURES = (".png", ".jpg", ".jpeg")
SUFFIXES = (*PICTURES, ".csv", ".npy", ".npz", ".wav")
STANDARD_INPUT = "-"

_RATE = re.compile(r"([\d,]+) samples a second")
_RANGE = re.compile(r"-?1(?:\.0)?\s*\.\.\s*1(?:\.0)?")


@dataclass(frozen=True)
class Sample:
    """What is sent in one call. names: what its rows are called; one name is the whole's."""

    names: Sequence[str]
    inputs: "Inputs"


def files(named: Sequence[str]) -> list[str]:
    """What is in folders that are named, in order. Raises CommandError for an empty one."""
    found: list[str] = []
    for name in named:
        path = Path(name)
        if name == STANDARD_INPUT or not path.is_dir():
            found.append(name)
            continue
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES)
        if not inside:
            raise CommandError(f"{name} has no file that ends in {', '.join(SUFFIXES)}")
        found += map(str, inside)
    return found


def samples(name: str, described: "Description") -> Iterator[Sample]:
    """Raises InvalidInputError for what a model cannot take, OSError for what cannot be read."""
    path = Path(name)
    suffix = path.suffix.lower()
    if name == STANDARD_INPUT or suffix == ".csv":
        for names, inputs in read_rows(name, described):
            yield Sample(names, inputs)
        return
    path.stat()  # what is not there is said so, and not in the words of whoever reads it
    if suffix in PICTURES:
        yield Sample([name], path)
    elif suffix in (".npy", ".npz"):
        yield Sample([name], _arrays(path))
    elif suffix == ".wav":
        yield Sample([name], _sound(path, only(described)))
    else:
        raise InvalidInputError(f"expected a name that ends in {', '.join(SUFFIXES)}")


def only(described: "Description") -> "TensorSpec":
    needed = [one for one in described.inputs if not one.optional]
    if len(needed) != 1:
        names = ", ".join(one.name for one in needed)
        raise InvalidInputError(f"the model takes {len(needed)} inputs ({names}): give an NPZ file")
    return needed[0]


def _arrays(path: Path) -> "Inputs":
    try:
        read = np.load(path, allow_pickle=False)
        if isinstance(read, np.ndarray):
            return read
        with read:
            return {name: read[name] for name in read.files}
    except (ValueError, EOFError) as error:  # objects, which could run code; or no such file
        raise InvalidInputError(f"it cannot be read as numpy's arrays: {error}") from error


def _sound(path: Path, spec: "TensorSpec") -> "Inputs":
    """One channel from -1 to 1, at the rate that the model's description names."""
    try:
        with wave.open(str(path)) as file:
            channels, size, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            content = file.readframes(file.getnframes())
    except (EOFError, wave.Error) as error:
        raise InvalidInputError(f"it is no WAV file: {error}") from error
    if len(spec.shape) != 2 or not _RANGE.search(spec.unit):
        raise InvalidInputError(
            f"input {spec.name!r} has shape {list(spec.shape)} and unit {spec.unit!r}, which is "
            "not plain sound from -1 to 1"
        )
    said = _RATE.search(spec.description)
    wanted = int(said[1].replace(",", "")) if said else rate
    if (channels, size, rate) != (1, 2, wanted):
        raise InvalidInputError(
            f"it has {channels} channels of {8 * size} bits at {rate} Hz; expected one of 16 bits "
            f"at {wanted} Hz"
        )
    return np.frombuffer(content, "<i2").astype(np.float32) / np.float32(32768)
