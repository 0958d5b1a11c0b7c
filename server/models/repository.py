"""Models on disk: <root>/<name>/<version>/model.onnx.

The file may have another name if it is the only one that ends in .onnx; it may be a folder
called model.onnx that holds it, with its external data beside it; and without a version it
stands in <root>/<name>/ itself, as version 1.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neurona_server.errors import LoadError
from neurona_server.models.folder_settings import read_settings
from neurona_server.models.settings import ModelSettings

MODEL_FILE = "model.onnx"
# Names and versions become metric labels, log lines and health services.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Found:
    """A model file, what it is called, and what its folder says of it."""

    name: str
    version: int
    path: Path
    settings: ModelSettings = field(default_factory=ModelSettings)

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


def scan(roots: Sequence[Path]) -> list[Found]:
    """Every version of every model in the roots, by name and version.

    Folders that are not called like a model or a version are passed over. Raises LoadError
    when a root cannot be read, when a name stands in two roots, or when nothing is found.
    """
    found: list[Found] = []
    home: dict[str, Path] = {}
    for root in dict.fromkeys(roots):  # one that is named twice is read once
        for name in _folders(root, _NAME):
            versions = _versions(name, root / name)
            if versions and home.setdefault(name, root) != root:
                raise LoadError(f"model {name!r} stands in {home[name]} and in {root}")
            found += versions
    if not found:
        places = ", ".join(str(root) for root in roots)
        raise LoadError(f"no model in {places}: expected <name>/<version>/{MODEL_FILE} there")
    return sorted(found, key=lambda one: (one.name, one.version))


def _versions(name: str, folder: Path) -> list[Found]:
    settings = read_settings(folder)
    name_of_file = settings.model_file or MODEL_FILE
    files = {int(v): _model_file(folder / v, name_of_file) for v in _folders(folder, _VERSION)}
    if not any(files.values()):
        files = {1: _model_file(folder, name_of_file)}
    present = {version: path for version, path in files.items() if path}
    return [Found(name, version, path, settings) for version, path in present.items()]


def _model_file(folder: Path, name: str) -> Path | None:
    path = folder / name
    if path.is_file() or name != MODEL_FILE:
        return path if path.is_file() else None
    within = path if path.is_dir() else folder
    files = [one for one in within.glob("*.onnx") if one.is_file()]
    return files[0] if len(files) == 1 else None


def _folders(parent: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        with os.scandir(parent) as entries:
            return sorted(e.name for e in entries if pattern.fullmatch(e.name) and e.is_dir())
    except OSError as error:
        raise LoadError(f"cannot read the repository {parent}: {error.strerror}") from error
