"""Files and folders that are served as they are, without the layout of a repository.

A file x.onnx is the model "x", with the settings in x.toml beside it. A folder is taken for what it
holds: a model, a repository, or files that are a model each. `scanner` makes models of all of them.
"""

import contextlib
import enum
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from neurona_server.errors import LoadError, printable
from neurona_server.models.onnx.external_data import find_external
from neurona_server.models.onnx.model_file import read_outline
from neurona_server.models.repository.listing import (
    Fingerprint,
    Kind,
    describe_file,
    kind_of,
    list_kinds,
)
from neurona_server.models.repository.model_toml import find_labels_file, read_model_toml
from neurona_server.models.repository.settings import CONFIG_PBTXT, MODEL_TOML, ModelSettings
from neurona_server.models.repository.unusable import (
    MODEL_FILE,
    MODEL_NAME,
    VERSION_NAME,
    display,
    find_any_model,
    is_hidden,
    model_format,
)

SETTINGS_SUFFIX = ".toml"

_OPTIONS_FILE = "neurona.toml"
"""The server's options: no settings of a model called neurona."""

_LAYOUT = f"expected ONNX files, or <name>/<version>/{MODEL_FILE}"


class GivenKind(enum.Enum):
    """What a path on the command line stands for."""

    FILE = enum.auto()
    MODEL_FOLDER = enum.auto()
    REPOSITORY = enum.auto()
    """A folder of models: folders as in a repository, files, or both."""


def kind_of_given(path: Path) -> GivenKind:
    """Return what a path is served as, as far as it can be said by what is there now."""
    if not path.is_dir():
        return GivenKind.FILE
    try:
        kinds = {name: kind for name, kind in list_kinds(path).items() if not is_hidden(name)}
    except OSError:
        return GivenKind.REPOSITORY  # whose scan has the error
    folders = [name for name, kind in kinds.items() if kind is Kind.FOLDER]
    versions = [name for name in folders if VERSION_NAME.fullmatch(name)]
    if any(name in kinds for name in (MODEL_TOML, CONFIG_PBTXT)):
        is_model = True
    elif any(_is_model_folder(path / name) for name in folders if name not in versions):
        is_model = False
    else:
        files = [name for name in kinds if is_onnx_file(name)]
        is_model = any(_holds_model(path / name) for name in versions) or files == [MODEL_FILE]
    return GivenKind.MODEL_FOLDER if is_model else GivenKind.REPOSITORY


def _holds_model(folder: Path) -> bool:
    """Return whether a folder holds a model file itself, as that of a version does."""
    try:
        return any(map(is_onnx_file, list_kinds(folder)))
    except OSError:
        return False


def _is_model_folder(folder: Path) -> bool:
    """Return whether a folder is that of a model in a repository."""
    if _holds_model(folder):
        return True
    try:
        kinds = list_kinds(folder)
    except OSError:
        return False
    return any(VERSION_NAME.fullmatch(name) and _holds_model(folder / name) for name in kinds)


def is_onnx_file(name: str) -> bool:
    """Return whether a file is meant to be an ONNX model, by its name."""
    return not is_hidden(name) and name.lower().endswith(".onnx")


def name_of_given(path: Path, kind: GivenKind | None = None) -> str:
    """Return the name of the model that a file or folder is.

    A file <name>/<version>/model.onnx of a repository, and the folder of a version, has the name
    that it has there.

    Args:
        path: The file or folder.
        kind: What it is served as, whatever is there now; None for what it is now.
    """
    # Without links followed: the name of a link is meant.
    path = Path(os.path.abspath(path))
    is_folder = path.is_dir() if kind is None else kind is not GivenKind.FILE
    folder = path if is_folder else path.parent
    is_default = folder is path or path.name == MODEL_FILE
    if is_default and VERSION_NAME.fullmatch(folder.name) and folder.parent.name:
        return clean_name(folder.parent.name)
    return clean_name(path.name if folder is path else path.stem)


def clean_name(text: str) -> str:
    """Return a text as a name that a model may have: "modèle (2)" as "modele-2"."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_text).strip("-")
    name = re.sub(r"^[^A-Za-z0-9]+", "", name)[:128]
    return name if MODEL_NAME.fullmatch(name) else "model"


@dataclass(frozen=True)
class SingleFile:
    """A file that is a model, at one scan."""

    path: Path
    fingerprint: Fingerprint = ()
    """Of the file and of its external data; () if it is missing or cannot be read."""
    problem: str = ""
    """Why it has no fingerprint."""

    @property
    def settings_path(self) -> Path | None:
        """The file of its settings, None if it can have none."""
        path = self.path.with_suffix(SETTINGS_SUFFIX)
        return None if path.name == _OPTIONS_FILE else path


@dataclass
class SingleFileReader:
    """Reads the state and the settings of files, again only what has changed."""

    _external: dict[Path, tuple[Fingerprint, tuple[Path, ...]]] = field(default_factory=dict)
    """By file: its own fingerprint, and the files with its external data."""

    _settings: dict[Path, tuple[Fingerprint, Path | None, ModelSettings, str]] = field(
        default_factory=dict
    )
    """By file: the fingerprint of its settings and labels, the file of labels that they name, the
    settings, and why they cannot be read."""

    def read(self, path: Path) -> SingleFile:
        """Return the state of a file."""
        try:
            kind = kind_of(path)
            if kind is None:
                return SingleFile(path, problem="its file is missing")
            if kind is not Kind.FILE:
                return SingleFile(path, problem=f"it is {kind.value} (expected a file)")
            row = describe_file(str(path), os.stat(path))
        except OSError as error:
            return SingleFile(path, problem=f"it cannot be read: {error.strerror}")
        cached = self._external.get(path)
        if cached is None or cached[0] != (row,) or not all(map(Path.exists, cached[1])):
            cached = self._external[path] = ((row,), _external_files(path))
        return SingleFile(path, (row, *_rows_of(cached[1])))

    def read_settings(self, file: SingleFile) -> tuple[ModelSettings, str]:
        """Return the settings of a file, and why they cannot be read, or ""."""
        path = file.settings_path
        if path is None or not os.path.lexists(path):
            return ModelSettings(), ""
        cached = self._settings.get(file.path)
        if cached is None or cached[0] != _rows_of([path, cached[1]]):
            labels = find_labels_file(path.parent, path.name)
            labels_path = path.parent / labels if labels else None
            fingerprint = _rows_of([path, labels_path])
            try:
                settings, problem = read_model_toml(path.parent, path.name), ""
            except LoadError as error:
                settings, problem = ModelSettings(), str(error)
            cached = self._settings[file.path] = (fingerprint, labels_path, settings, problem)
        return cached[2], cached[3]

    def forget_others(self, paths: Sequence[Path]) -> None:
        """Forget all files but these."""
        self._external = {path: self._external[path] for path in paths if path in self._external}
        self._settings = {path: self._settings[path] for path in paths if path in self._settings}


def _rows_of(paths: Sequence[Path | None]) -> Fingerprint:
    rows = []
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            if path is not None:
                rows.append(describe_file(str(path), os.stat(path)))
    return tuple(rows)


def _external_files(path: Path) -> tuple[Path, ...]:
    try:
        return tuple(sorted(set(find_external(path, read_outline(path).external).values())))
    except LoadError:  # it is being written, or wrong: the load has the reason
        return ()


def check_given(paths: Sequence[Path]) -> None:
    """Check what a person has named to be served.

    Args:
        paths: Files and folders.

    Raises:
        LoadError: One is missing, of another format than ONNX or without any model, or two would be
            the same model.
    """
    names: dict[str, Path] = {}
    for path in dict.fromkeys(paths):
        kind = kind_of_given(path)
        if kind is GivenKind.FILE:
            _check_file(path)
        models = _models_in(path) if kind is GivenKind.REPOSITORY else {name_of_given(path): path}
        for name, source in models.items():
            if name in names and names[name].resolve() != source.resolve():
                raise LoadError(
                    f"{_shown(names[name])} and {_shown(source)} would both be the model {name!r} "
                    "(expected files of different names, or --model NAME=FOLDER)"
                )
            names[name] = source


def _check_file(path: Path) -> None:
    shown = _shown(path)
    try:
        kind = kind_of(path)
        if kind is None:
            near = path.with_name(path.name + ".onnx")
            hint = f"; did you mean {_shown(near)}?" if near.is_file() else ""
            raise LoadError(f"there is no file or folder {shown}{hint}")
    except OSError as error:
        raise LoadError(f"{shown} cannot be read: {error.strerror}") from error
    if kind is not Kind.FILE:
        raise LoadError(f"{shown} is {kind.value} (expected an ONNX file, or a folder)")
    try:
        read_outline(path)
    except LoadError as error:
        hint = " (expected an ONNX file)" if str(error).endswith(" a text") else ""
        raise LoadError(f"{shown}: {error}{hint}") from error


def _models_in(folder: Path) -> dict[str, Path]:
    """Return the models of a folder by name, with the path of each."""
    shown = _shown(folder)
    try:
        kinds = {name: kind for name, kind in list_kinds(folder).items() if not is_hidden(name)}
    except OSError as error:
        raise LoadError(f"the folder {shown} cannot be read: {error.strerror}") from error
    models: dict[str, Path] = {}
    for name, kind in kinds.items():
        path = folder / name
        if kind is Kind.FOLDER and _is_model_folder(path):
            model = name
        elif kind is Kind.FILE and is_onnx_file(name):
            model = name_of_given(path)
        else:
            continue
        if model in models:
            raise LoadError(
                f"{_shown(models[model])} and {_shown(path)} would both be the model {model!r} "
                "(expected different names)"
            )
        models[model] = path
    if not models:
        raise LoadError(f"there is no model in the folder {shown}: {_describe(folder, kinds)}")
    return models


def _describe(folder: Path, kinds: Mapping[str, Kind]) -> str:
    """Say what is in a folder without any model, and what to do."""
    if not kinds:
        return f"it is empty ({_LAYOUT})"
    if "saved_model.pb" in kinds:
        return "it is a TensorFlow SavedModel (expected an ONNX file: export the model to ONNX)"
    if formats := {name: what for name in kinds if (what := model_format(name))}:
        name, what = next(iter(formats.items()))
        return f"{display(name)!r} is {what} (expected an ONNX file: export the model to ONNX)"
    if inner := find_any_model(folder):
        return f"it holds {display(inner)!r} deeper ({_LAYOUT})"
    names = ", ".join(repr(display(name)) for name in [*kinds][:4])
    more = f" and {len(kinds) - 4} more" if len(kinds) > 4 else ""
    return f"it holds {names}{more} ({_LAYOUT})"


def _shown(path: Path) -> str:
    return repr(printable(display(str(path))))
