"""Scans model repositories for models and versions on disk, and their state.

The model file of a version is <root>/<name>/<version>/model.onnx. The file may have another name if
it is the only one that ends in .onnx, or if the model's settings name it; it may be in a folder
called model.onnx, together with its external data; and without a version it is in <root>/<name>/
itself, as version 1.
"""

import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from neurona_server.errors import LoadError, NotLoadedError, quoted
from neurona_server.models.repository.model_toml import read_model_toml
from neurona_server.models.repository.settings import CONFIG_PBTXT, MODEL_TOML, ModelSettings
from neurona_server.models.repository.triton_config import read_triton_config

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"

MAX_FILES = 10_000
"""Files of one version that are looked at; a folder with more is not a model."""

# Names and versions become metric labels, log lines and health services.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")

Fingerprint = tuple[tuple[str | int, ...], ...]
"""Path, size, modification time, inode, mode and owners of each file.

A different fingerprint means different contents, or files that have become readable; it is
taken without reading the files.
"""

_UNREADABLE: Fingerprint = ()


@dataclass(frozen=True)
class ModelSource:
    """A model file with its name, version and settings: what a model is loaded from."""

    name: str
    version: int
    path: Path
    settings: ModelSettings = field(default_factory=ModelSettings)
    fingerprint: Fingerprint = ()
    """That of the version's files when they were scanned."""

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        """Structured fields of log lines about this model, equal to those of `Model`."""
        return {"model": self.name, "version": self.version}


@dataclass(frozen=True)
class VersionFiles:
    """The files of one version; `problem` is why the version must not be loaded, or ""."""

    path: Path
    fingerprint: Fingerprint
    problem: str = ""


@dataclass(frozen=True)
class ModelFolder:
    """The folder of one model at one scan; `problem` is why it cannot be used, or ""."""

    name: str
    versions: Mapping[int, VersionFiles]
    settings: ModelSettings = field(default_factory=ModelSettings)
    problem: str = ""

    def source(self, version: int) -> ModelSource:
        files = self.versions[version]
        return ModelSource(self.name, version, files.path, self.settings, files.fingerprint)


class Repository:
    """Folders of models, scanned again and again by any thread.

    The settings of a model are read again only when its files have changed.
    """

    def __init__(self, roots: Sequence[Path], single_models: Sequence[tuple[str, Path]] = ()):
        """Name the folders to scan, without reading them.

        Args:
            roots: Folders of models.
            single_models: Folders that are one model each, with the name of the model.

        Raises:
            LoadError: A name is invalid or used twice.
        """
        self.roots = tuple(dict.fromkeys(roots))
        self._single_models = dict(single_models)
        if invalid := [name for name in self._single_models if not _NAME.fullmatch(name)]:
            raise LoadError(f"invalid model name {quoted(invalid[0])}")
        if len(self._single_models) < len(set(single_models)):
            raise LoadError("two folders are given for the same model name")
        self._settings: dict[Path, tuple[Fingerprint, ModelSettings, str]] = {}
        self._root_ids: dict[Path, tuple[int, int]] = {}  # device and inode of non-empty roots
        self._logged_problem = ""
        self._scanning = threading.Lock()

    def scan(self) -> dict[str, ModelFolder]:
        """Return every model folder by name, including one without versions.

        Files and folders whose names are not those of a model or version are ignored. A name
        that is in two roots has a problem.

        Raises:
            LoadError: A root cannot be read.
        """
        with self._scanning:
            return self._scan()

    def scan_or_keep(self) -> dict[str, ModelFolder] | None:
        """Return what `scan` returns, or None when a root cannot be read, which is logged once."""
        problem = ""
        folders = None
        try:
            folders = self.scan()
        except LoadError as error:
            problem = str(error)
        except Exception:  # the loaded models keep serving, whatever is on the disk
            log.exception("cannot scan the repository")
            problem = "internal error while scanning the repository"
        if problem and problem != self._logged_problem:
            log.error("%s; loaded models keep serving", problem)
        self._logged_problem = problem
        return folders

    def scan_for_caller(self) -> dict[str, ModelFolder]:
        """Return what `scan` returns.

        Raises:
            NotLoadedError: The repository cannot be read. The message contains no path, since
                it is meant for clients.
        """
        try:
            return self.scan()
        except LoadError as error:
            log.error("%s", error)
            raise NotLoadedError("cannot read the repository; see the server's log") from error

    def _scan(self) -> dict[str, ModelFolder]:
        folders: dict[str, ModelFolder] = {}
        root_of: dict[str, Path] = {}
        for number, root in enumerate(self.roots, 1):
            for name in self._list_models(root):
                folder = self._scan_folder(root, name, root / name)
                if name in folders and folders[name].versions and folder.versions:
                    # Numbers, not paths: clients see the message.
                    first = self.roots.index(root_of[name]) + 1
                    problem = f"duplicate model: it is in repositories {first} and {number}"
                    folders[name] = replace(folders[name], problem=problem)
                elif name not in folders or folder.versions:
                    folders[name], root_of[name] = folder, root
        for name, path in self._single_models.items():
            folder = self._scan_folder(path, name, path)
            if name in root_of:
                folder = replace(folder, problem="duplicate model: it is in a repository, too")
            folders[name] = folder
        paths = {root / name for name, root in root_of.items()} | set(self._single_models.values())
        self._settings = {path: entry for path, entry in self._settings.items() if path in paths}
        return dict(sorted(folders.items()))

    def _list_models(self, root: Path) -> list[str]:
        try:
            names = _list_folders(root, _NAME)
            status = root.stat()
        except OSError as error:
            reason = f"cannot read the repository {root}: {error.strerror}"
            raise LoadError(reason) from error
        root_id = (status.st_dev, status.st_ino)
        if names:
            self._root_ids[root] = root_id
        elif self._root_ids.get(root, root_id) != root_id:
            raise LoadError(
                f"the repository {root} was replaced by an empty folder: is its volume unmounted?"
            )
        return names

    def _scan_folder(self, root: Path, name: str, path: Path) -> ModelFolder:
        try:
            if path != root and path.is_symlink() and not _is_inside(path, root):
                problem = "it is a link that leads out of the repository"
                return ModelFolder(name, {}, problem=problem)
            settings, problem = self._read_settings_if_changed(path)
            versions = _scan_versions(root, path, settings.model_file or MODEL_FILE)
        except OSError as error:  # removed meanwhile, or not readable
            return ModelFolder(name, {}, problem=f"it cannot be read: {error.strerror}")
        except RuntimeError:
            return ModelFolder(name, {}, problem="it is a link to itself")
        return ModelFolder(name, versions, settings, problem)

    def _read_settings_if_changed(self, path: Path) -> tuple[ModelSettings, str]:
        """Return the settings in a model's folder, and why they cannot be read, or ""."""
        # Files of labels may be in a subfolder.
        fingerprint = _fingerprint_of(_list_files(path, recursive=True, skip=_VERSION))
        cached = self._settings.get(path)
        if cached is None or cached[0] != fingerprint:
            try:
                cached = (fingerprint, read_settings(path), "")
            except LoadError as error:
                cached = (fingerprint, ModelSettings(), str(error))
            except Exception:  # one model must not keep the others from being served
                log.exception("cannot read the settings of %s", path.name)
                problem = "its settings cannot be read; see the server's log"
                cached = (fingerprint, ModelSettings(), problem)
            self._settings[path] = cached
        return cached[1], cached[2]


def find_models(roots: Sequence[Path]) -> list[ModelSource]:
    """Return every version of every model in the roots, by name and version."""
    folders = Repository(roots).scan().values()
    return [folder.source(number) for folder in folders for number in folder.versions]


def read_settings(folder: Path) -> ModelSettings:
    """Read the settings in a model's folder; model.toml takes precedence over config.pbtxt.

    Raises:
        LoadError: A file is invalid; the message is one line with file, key and value.
    """
    # A dangling link counts as present, so that its owner gets an error.
    toml, pbtxt = (os.path.lexists(folder / name) for name in (MODEL_TOML, CONFIG_PBTXT))
    if toml and pbtxt:
        log.info("%s: %s is read, %s is ignored", folder.name, MODEL_TOML, CONFIG_PBTXT)
    if toml:
        return read_model_toml(folder)
    if pbtxt:
        return read_triton_config(folder)
    return ModelSettings()


def _scan_versions(root: Path, folder: Path, model_file: str) -> dict[int, VersionFiles]:
    """Return the versions by number; one that cannot be read does not hide the others."""
    versions = {}
    for number in sorted(int(version) for version in _list_folders(folder, _VERSION)):
        path = folder / str(number)
        try:
            if (file := _find_model_file(path, model_file)) is not None:
                files = list(_list_files(path, recursive=True))
                versions[number] = _check_files(root, file, files)
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError as error:
            problem = f"it cannot be read: {error.strerror}"
            versions[number] = VersionFiles(path / model_file, _UNREADABLE, problem)
    if not versions and (file := _find_model_file(folder, model_file)) is not None:
        entries = _list_files(file.parent, recursive=file.parent != folder)
        files = [entry for entry in entries if entry.name not in (MODEL_TOML, CONFIG_PBTXT)]
        versions[1] = _check_files(root, file, files)
    return versions


def _find_model_file(folder: Path, name: str) -> Path | None:
    path = folder / name
    if path.is_file():
        return path
    if name != MODEL_FILE:
        return None
    parent = path if path.is_dir() else folder
    files = [file for file in parent.glob("*.onnx") if file.is_file()]
    return files[0] if len(files) == 1 else None


def _check_files(root: Path, model: Path, files: Sequence[os.DirEntry[str]]) -> VersionFiles:
    problem = ""
    links = [Path(entry.path) for entry in files if entry.is_symlink()]
    for path in [model, *links]:
        try:
            if _is_inside(path, root):
                continue
        except RuntimeError:
            problem = f"{path.name!r} is a link to itself"
        else:
            problem = f"{path.name!r} is a link that leads out of the repository"
        break
    return VersionFiles(model, _fingerprint_of(files), problem)


def _is_inside(path: Path, root: Path) -> bool:
    """Return whether `path` with all links followed is in `root`.

    Raises:
        RuntimeError: The links form a loop.
    """
    return path.resolve().is_relative_to(root.resolve())


def _list_folders(parent: Path, pattern: re.Pattern[str]) -> list[str]:
    """Return the sorted names of the folders in `parent` that match `pattern`."""
    with os.scandir(parent) as entries:
        return sorted(e.name for e in entries if pattern.fullmatch(e.name) and _is_folder(e))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself or to a forbidden place: reading it gives the reason
        return True


def _list_files(
    folder: Path, *, recursive: bool, skip: re.Pattern[str] | None = None
) -> Iterator[os.DirEntry[str]]:
    """List at most `MAX_FILES` files, leaving out subfolders whose names match `skip`.

    Links to folders are not followed: their contents do not belong to a version.
    """
    pending = [folder]
    count = 0
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if recursive and not (skip and skip.fullmatch(entry.name)):
                        pending.append(Path(entry.path))
                    continue
                count += 1
                if count > MAX_FILES:
                    return
                yield entry


def has_changed(source: ModelSource) -> bool:
    """Return whether a file of the version has changed or gone since the version was scanned."""
    try:
        return any(
            _describe_file(str(row[0]), os.stat(row[0])) != row for row in source.fingerprint
        )
    except OSError:
        return True


def _fingerprint_of(files: Iterable[os.DirEntry[str]]) -> Fingerprint:
    fingerprints = []
    for entry in files:
        try:
            status = entry.stat()
        except OSError:  # a dangling link or a loop; loading the file will fail with the reason
            status = entry.stat(follow_symlinks=False)
        fingerprints.append(_describe_file(entry.path, status))
    return tuple(sorted(fingerprints))


def _describe_file(path: str, status: os.stat_result) -> tuple[str | int, ...]:
    content = (status.st_size, status.st_mtime_ns, status.st_ino)
    return (path, *content, status.st_mode, status.st_uid, status.st_gid)
