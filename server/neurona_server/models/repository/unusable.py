"""Says what in a repository cannot be served, and why.

What is meant to be a model or a version and is none gets a reason, with which it is listed as
failed. What is hidden, or plainly something else (notes, labels, data), is left alone.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from neurona_server.errors import close_match, printable
from neurona_server.models.repository.listing import (
    Fingerprint,
    Kind,
    fingerprint_of,
    is_inside,
    kind_of,
    list_files,
    list_kinds,
)
from neurona_server.models.repository.settings import CONFIG_PBTXT, MODEL_TOML

MODEL_FILE = "model.onnx"

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Names of models and versions become metric labels, log lines and health services."""

VERSION_NAME = re.compile(r"[1-9][0-9]{0,17}")

WHOLE_FOLDER = ""
"""Key of a reason that is about a model's folder, not about one of its entries."""

_WEIGHTS_OF_TRAINING = "report/weights.safetensors"
"""What neurona-train writes beside a version, for further trainings."""

_TOO_LONG = re.compile(r"[1-9][0-9]{18,}")

_NAMED_LIKE_VERSION = re.compile(r"(v|ver|version|r|rev|release)?[-_. ]*\d.*", re.IGNORECASE)

_OTHER_FORMATS: Mapping[str, str] = {
    ".ckpt": "a checkpoint of training",
    ".engine": "a TensorRT engine",
    ".gguf": "a GGUF file",
    ".graphdef": "a TensorFlow graph",
    ".h5": "a Keras model",
    ".joblib": "a pickle",
    ".keras": "a Keras model",
    ".mlmodel": "a Core ML model",
    ".ort": "a model in ONNX Runtime's own format",
    ".pickle": "a pickle",
    ".pkl": "a pickle",
    ".plan": "a TensorRT engine",
    ".pt": "a PyTorch file",
    ".pth": "a PyTorch file",
    ".safetensors": "weights without a graph",
    ".savedmodel": "a TensorFlow model",
    ".tflite": "a TensorFlow Lite model",
    ".trt": "a TensorRT engine",
}
_ARCHIVES = (".bz2", ".gz", ".tar", ".tgz", ".xz", ".zip", ".zst")

_SYSTEM_FOLDERS = frozenset(
    {
        *("lost+found", "__pycache__", "__MACOSX", "@eaDir", "#recycle", "#snapshot"),
        *("$RECYCLE.BIN", "System Volume Information"),
    }
)
"""What file systems and tools put into any folder."""

_BACKUPS = (".bak", ".disabled", ".example", ".old", ".orig", ".sample", "~")

_MOST_ENTRIES = 200
"""Entries of a folder that are looked at for what it may be meant to be."""

_MOST_LISTED = 4


@dataclass(frozen=True)
class Unusable:
    """Why something cannot be served, and the state of its files: it may still be being written."""

    reason: str
    fingerprint: Fingerprint = ()


class NoModelFileError(Exception):
    """A folder has no model file; the message is the reason."""


def is_version_name(name: str) -> bool:
    """Return whether a folder's name is the number of a version."""
    return bool(VERSION_NAME.fullmatch(name))


def is_hidden(name: str) -> bool:
    """Return whether a name belongs to the system or to tools, not to the repository."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def is_hidden_path(path: str) -> bool:
    """Return whether a file, or a folder on its relative path, is hidden."""
    return any(map(is_hidden, Path(path).parts))


def display(name: str) -> str:
    """Return a file name as messages and lists show it: printable, and valid Unicode."""
    text = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return printable(text)


@lru_cache(maxsize=4096)
def model_format(name: str) -> str:
    """Say what kind of model a file's name promises, or ""."""
    suffix = Path(name).suffix.lower()
    if suffix == ".onnx":
        return "an ONNX model" if name.endswith(".onnx") else "an ONNX model by another name"
    return _OTHER_FORMATS.get(suffix, "an archive" if suffix in _ARCHIVES else "")


def find_model_file(folder: Path, name: str) -> Path:
    """Return the model file in a folder of a version, or of a model without versions.

    Args:
        folder: Where to look.
        name: Name of the file; if it is `MODEL_FILE`, the only file that ends in .onnx will do.

    Raises:
        NoModelFileError: There is none, or there are several.
        OSError: The folder cannot be read.
    """
    path = folder / name
    kind = kind_of(path)
    if kind is Kind.FILE:
        return path
    if name != MODEL_FILE:
        if kind is not None:
            raise NoModelFileError(f"no model file: {_quoted(name)} is {kind.value}")
        raise NoModelFileError(
            f"no model file: {_holds(folder)} (expected {_quoted(name)}, which its settings name)"
        )
    if kind not in (None, Kind.FOLDER):
        raise NoModelFileError(f"no model file: {_quoted(name)} is {kind.value} (expected a file)")
    parent = path if kind is Kind.FOLDER else folder
    kinds = {
        one: kind
        for one, kind in list_kinds(parent).items()
        if one.endswith(".onnx") and not is_hidden(one)
    }
    files = [one for one, kind in kinds.items() if kind is Kind.FILE]
    if len(files) == 1:
        return parent / files[0]
    if files:
        raise NoModelFileError(
            f"no model file: {_join(files)} are there, and none is named {name} "
            f"(expected {name}, or one file that ends in .onnx)"
        )
    if kinds:
        broken, kind = next(iter(kinds.items()))
        if kind is not Kind.FOLDER:
            raise NoModelFileError(
                f"no model file: {_quoted(broken)} is {kind.value} (expected {name})"
            )
    raise NoModelFileError(f"no model file: {_holds(parent)} (expected {name})")


def explain_in_repository(path: Path, kind: Kind) -> str:
    """Return why an entry of a repository is no model, or "" if it may be one, or is not meant."""
    name = path.name
    if kind is Kind.FOLDER:
        if MODEL_NAME.fullmatch(name):
            return ""
        return (
            "its name is not a model's (expected letters, digits, '.', '_' and '-', at most 128, "
            "the first a letter or digit)"
        )
    if kind is Kind.FILE:
        if not (what := model_format(name)):
            return ""
        return (
            f"it is a file, {what}, beside the folders of models "
            f"(expected {display(path.stem)}/1/{MODEL_FILE})"
        )
    return "" if kind is Kind.OTHER else f"it is {kind.value} (expected a folder of versions)"


def explain_in_model(path: Path, kind: Kind, root: Path) -> str:
    """Return why an entry of a model's folder is no version, or "" if it is not meant to be one.

    Args:
        path: The entry, which has not the name of a version or is not a folder.
        kind: What it is.
        root: The repository, which links must not leave.
    """
    name = path.name
    like_version = bool(_NAMED_LIKE_VERSION.fullmatch(name))
    if kind is Kind.FOLDER:
        try:
            inside = is_inside(path, root)
            if inside and path.is_symlink() and _is_version_beside(path):
                return ""  # another name of a version
            held = find_any_model(path) if inside else ""
        except (OSError, RuntimeError):
            held = ""
        if (not held and not like_version) or f"{name}/{held}" == _WEIGHTS_OF_TRAINING:
            return ""
        detail = f": it holds {_quoted(held)}" if held and not like_version else ""
        digits = "with at most 18 digits and " if _TOO_LONG.fullmatch(name) else ""
        return (
            f"{_quoted(name)} is not a version{detail} (expected a whole number from 1 on, "
            f"{digits}without leading zeros, such as {_suggest_version(name)})"
        )
    if kind is Kind.FILE:
        if what := model_format(name):
            return (
                f"{_quoted(name)} is {what} beside the folders of versions "
                f"(expected <version>/{MODEL_FILE})"
            )
        likely = bool(VERSION_NAME.fullmatch(name))
    else:
        likely = like_version or "." not in name or bool(model_format(name))
    return (
        f"{_quoted(name)} is {kind.value} (expected a folder with {MODEL_FILE})" if likely else ""
    )


def misplaced_settings(names: Iterable[str], *, here: bool) -> list[str]:
    """Return a note on each file that looks like settings and is not read.

    Args:
        names: Files of one folder.
        here: Whether it is a folder whose settings are read.
    """
    notes = []
    for name in names:
        if name in (MODEL_TOML, CONFIG_PBTXT):
            if not here:
                notes.append(f"{_quoted(name)} is not read (expected in the model's folder)")
        elif hint := _hint_for_settings(name):
            notes.append(f"{_quoted(name)} is not read{hint}")
    return notes


@lru_cache(maxsize=4096)  # the same names are in most folders, at every poll
def _hint_for_settings(name: str) -> str:
    if name.endswith(_BACKUPS) or name.startswith("#"):  # "#" is of Emacs
        return ""
    return close_match(name.lower(), (MODEL_TOML, CONFIG_PBTXT), cutoff=0.85)


def notes_beside(model: str, names: Iterable[str]) -> list[str]:
    """Return a note on each other model file in the folder of a model file: it is not served."""
    return [
        f"{_quoted(name)} is not served: {_quoted(model)} is"
        for name in names
        if name != model and model_format(name)
    ]


def state_of(path: Path) -> Fingerprint:
    """Return a fingerprint of what is in a folder, or of the file; () if it cannot be read."""
    try:
        if path.is_dir():
            return fingerprint_of(list_files(path, recursive=True, limit=_MOST_ENTRIES))
        status = path.lstat()
    except OSError:
        return ()
    return ((str(path), status.st_size, status.st_mtime_ns, status.st_ino),)


def _quoted(name: str) -> str:
    text = display(name)
    return f"'{text}'" if len(text) <= 100 else f"'{text[:99]}…'"


def _join(names: Iterable[str]) -> str:
    listed = [*names]
    texts = [_quoted(name) for name in listed[:_MOST_LISTED]]
    if len(listed) > _MOST_LISTED:
        texts.append(f"{len(listed) - _MOST_LISTED} more")
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def _holds(folder: Path) -> str:
    """Say what is in a folder that has no model file."""
    names = [name for name in list_kinds(folder) if not is_hidden(name)]
    for name in names:
        if what := model_format(name):
            return f"{_quoted(name)} is {what}"
    if names and (held := find_any_model(folder)):
        return f"it holds {_quoted(held)}"
    return f"it holds {_join(names)}" if names else "it is empty"


def _suggest_version(name: str) -> str:
    number = re.search(r"[1-9][0-9]*", name)
    return number[0] if number and VERSION_NAME.fullmatch(number[0]) else "1"


def _is_version_beside(link: Path) -> bool:
    target = link.resolve()
    return target.parent == link.parent.resolve() and bool(VERSION_NAME.fullmatch(target.name))


def find_any_model(folder: Path) -> str:
    """Return the path of a model file in the folder, relative to it, or ""."""
    for entry in list_files(folder, recursive=True, limit=_MOST_ENTRIES):
        path = Path(entry.path).relative_to(folder)
        is_model = path.suffix.lower() == ".onnx" or path.suffix.lower() in _OTHER_FORMATS
        if is_model and not is_hidden_path(str(path)):
            return path.as_posix()
    return ""
