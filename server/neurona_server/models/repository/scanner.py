"""Models on disk: <root>/<name>/<version>/model.onnx.

The file may have another name if it is the only one that ends in .onnx, or if the model's
settings name it; it may be a folder called model.onnx that holds it, with its external data
beside it; and without a version it stands in <root>/<name>/ itself, as version 1.
"""

import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from neurona_server.errors import LoadError, NotFoundError, NotLoadedError, quoted
from neurona_server.models.repository.model_toml import read_model_toml
from neurona_server.models.repository.settings import CONFIG_PBTXT, MODEL_TOML, ModelSettings
from neurona_server.models.repository.triton_config import read_triton_config

log = logging.getLogger(__name__)

MOST_FILES = 10_000
"""Of one version; a folder with more is somebody's home."""

Fingerprint = tuple[tuple[str | int, ...], ...]
"""Of every file: where it is, its size, its time, its inode, its mode and its owners. Another
stamp is another content, or one that may be read now; nothing is read for it."""


def files_in(
    folder: Path, *, deep: bool, but: re.Pattern[str] | None = None
) -> Iterator[os.DirEntry[str]]:
    """All in it, save what is in folders that are called like `but`.

    Links to folders are not followed: what is behind them does not belong to a version.
    """
    left = [folder]
    count = 0
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if deep and not (but and but.fullmatch(entry.name)):
                        left.append(Path(entry.path))
                    continue
                count += 1
                if count > MOST_FILES:
                    return
                yield entry


def fingerprint_of(files: Iterator[os.DirEntry[str]] | list[os.DirEntry[str]]) -> Fingerprint:
    stamps = []
    for one in files:
        try:
            state = one.stat()
        except OSError:  # a link to nowhere or to itself; whoever needs it will say so
            state = one.stat(follow_symlinks=False)
        access = (state.st_mode, state.st_uid, state.st_gid)
        stamps.append((one.path, state.st_size, state.st_mtime_ns, state.st_ino, *access))
    return tuple(sorted(stamps))


def folders_in(parent: Path, pattern: re.Pattern[str]) -> list[str]:
    """Names of folders that match, in order. Raises OSError."""
    with os.scandir(parent) as entries:
        return sorted(e.name for e in entries if pattern.fullmatch(e.name) and _is_folder(e))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where we may not look: reading it will tell
        return True


_LOG = logging.getLogger(__name__)


def read_settings(folder: Path, log: logging.Logger = _LOG) -> ModelSettings:
    """What stands in a model's folder; model.toml wins over config.pbtxt.

    Raises LoadError with one line: file, key, what came and what was expected.
    """
    # A link to nowhere is there too: whoever made it should hear that nothing is behind it.
    toml, pbtxt = (os.path.lexists(folder / name) for name in (MODEL_TOML, CONFIG_PBTXT))
    if toml and pbtxt:
        log.info("%s: %s is read, %s is not", folder.name, MODEL_TOML, CONFIG_PBTXT)
    if toml:
        return read_model_toml(folder)
    if pbtxt:
        return read_triton_config(folder)
    return ModelSettings()


class Looks:
    """Any thread may look."""

    def __init__(self, repository: "Repository") -> None:
        self._repository = repository
        self._problem = ""
        self._looking = threading.Lock()

    def at_all(self) -> dict[str, "ModelFolder"] | None:
        """Every folder by name; None when it cannot be read, which the log hears once."""
        try:
            with self._looking:
                folders = self._repository.scan()
            problem = ""
        except LoadError as error:
            problem = str(error)
        except Exception:  # whatever is odd on the disk, what is loaded serves on
            log.exception("the repository cannot be read")
            problem = "an internal error; the server's log says why"
        if problem and problem != self._problem:
            log.error("%s; what is loaded serves on", problem)
        self._problem = problem
        return None if problem else folders

    def at(self, name: str) -> "ModelFolder":
        """Raises NotFoundError when there is no such model, NotLoadedError when the repository
        cannot be read: both are for callers, and no path is."""
        try:
            with self._looking:
                folders = self._repository.scan()
        except LoadError as error:
            log.error("%s", error)
            raise NotLoadedError("the repository cannot be read; the log says why") from error
        if name not in folders or not (folders[name].versions or folders[name].problem):
            raise NotFoundError(f"the repository has no model {quoted(name)}")
        return folders[name]


MODEL_FILE = "model.onnx"

# Names and versions become metric labels, log lines and health services.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")

_NOT_READABLE: Fingerprint = ()


@dataclass(frozen=True)
class ModelSource:
    """A model file, what it is called, and what its folder says of it."""

    name: str
    version: int
    path: Path
    settings: ModelSettings = field(default_factory=ModelSettings)

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def log_fields(self) -> Mapping[str, str | int]:
        """As those of a `Model`."""
        return {"model": self.name, "version": self.version}


@dataclass(frozen=True)
class VersionFiles:
    """One version's file, what tells it from another one in the same place, and why it must
    not be loaded, if so."""

    path: Path
    fingerprint: Fingerprint
    problem: str = ""


@dataclass(frozen=True)
class ModelFolder:
    """One model's folder as it is now; `problem` says why its settings cannot be read."""

    name: str
    versions: Mapping[int, VersionFiles]
    settings: ModelSettings = field(default_factory=ModelSettings)
    problem: str = ""

    def found(self, version: int) -> ModelSource:
        return ModelSource(self.name, version, self.versions[version].path, self.settings)


class Repository:
    """Several roots, read again and again; a model's settings only when they have changed."""

    def __init__(self, roots: Sequence[Path], alone: Sequence[tuple[str, Path]] = ()) -> None:
        """`alone`: folders that are one model, with its name. LoadError for one that is wrong."""
        self.roots = tuple(dict.fromkeys(roots))  # one that is named twice is read once
        self._alone = dict(alone)
        if wrong := [name for name in self._alone if not _NAME.fullmatch(name)]:
            raise LoadError(f"a model cannot be called {quoted(wrong[0])}")
        if len(self._alone) < len(set(alone)):
            raise LoadError("two folders are given for a model of the same name")
        self._settings: dict[Path, tuple[Fingerprint, ModelSettings, str]] = {}
        self._homes: dict[Path, tuple[int, int]] = {}  # device and inode of each root, not empty

    def scan(self) -> dict[str, ModelFolder]:
        """Every folder by name, also one without a version: its files may be on their way.

        What is not called like a model or a version is passed over; a name that stands in
        two roots has a problem. Raises LoadError when a root cannot be read.
        """
        found: dict[str, ModelFolder] = {}
        home: dict[str, Path] = {}
        for number, root in enumerate(self.roots, 1):
            for name in self._names(root):
                folder = self._folder(root, name, root / name)
                if name in found and found[name].versions and folder.versions:
                    # Callers hear of it, and no path is for them.
                    first = self.roots.index(home[name]) + 1
                    both = f"the repositories number {first} and {number}"
                    found[name] = replace(found[name], problem=f"it stands in {both}")
                elif name not in found or folder.versions:
                    found[name], home[name] = folder, root
        for name, path in self._alone.items():
            folder = self._folder(path, name, path)
            twice = "it stands in a repository too" if name in home else folder.problem
            found[name] = replace(folder, problem=twice)
        places = {root / name for name, root in home.items()} | set(self._alone.values())
        self._settings = {path: kept for path, kept in self._settings.items() if path in places}
        return dict(sorted(found.items()))

    def _names(self, root: Path) -> list[str]:
        try:
            names = folders_in(root, _NAME)
            state = root.stat()
        except OSError as error:
            reason = f"cannot read the repository {root}: {error.strerror}"
            raise LoadError(reason) from error
        home = (state.st_dev, state.st_ino)
        if names:
            self._homes[root] = home
        elif self._homes.get(root, home) != home:  # the volume is gone, its mount point is left
            raise LoadError(f"the repository {root} is another folder now, and empty")
        return names

    def _folder(self, root: Path, name: str, path: Path) -> ModelFolder:
        try:
            if (
                path != root
                and path.is_symlink()
                and not path.resolve().is_relative_to(root.resolve())
            ):
                return ModelFolder(
                    name, {}, problem="it is a link that leads out of the repository"
                )
            settings, problem = self._read_settings(path)
            versions = _versions(root, path, settings.model_file or MODEL_FILE)
        except OSError as error:  # it goes while it is read, or it is not ours to read
            return ModelFolder(name, {}, problem=f"it cannot be read: {error.strerror}")
        except RuntimeError:
            return ModelFolder(name, {}, problem="it is a link that leads back to itself")
        return ModelFolder(name, versions, settings, problem)

    def _read_settings(self, path: Path) -> tuple[ModelSettings, str]:
        # Labels may stand in a folder of their own.
        fingerprint = fingerprint_of(files_in(path, deep=True, but=_VERSION))
        known = self._settings.get(path)
        if known is None or known[0] != fingerprint:
            try:
                known = (fingerprint, read_settings(path), "")
            except LoadError as error:
                known = (fingerprint, ModelSettings(), str(error))
            except Exception:  # whatever stands in one file, the other models are served
                log.exception("the settings of %s cannot be read", path.name)
                problem = "its settings cannot be read; the server's log says why"
                known = (fingerprint, ModelSettings(), problem)
            self._settings[path] = known
        return known[1], known[2]


def find_models(roots: Sequence[Path]) -> list[ModelSource]:
    """Every version of every model in the roots, by name and version."""
    folders = Repository(roots).scan().values()
    return [folder.found(number) for folder in folders for number in folder.versions]


def _versions(root: Path, folder: Path, model_file: str) -> dict[int, VersionFiles]:
    """By number; one that cannot be read does not hide the others."""
    versions = {}
    for number in sorted(int(v) for v in folders_in(folder, _VERSION)):
        place = folder / str(number)
        try:
            if (file := _model_file(place, model_file)) is not None:
                versions[number] = _on_disk(root, file, list(files_in(place, deep=True)))
        except FileNotFoundError:  # it goes while it is read
            continue
        except OSError as error:
            problem = f"it cannot be read: {error.strerror}"
            versions[number] = VersionFiles(place / model_file, _NOT_READABLE, problem)
    if not versions and (bare := _model_file(folder, model_file)) is not None:
        beside = list(files_in(bare.parent, deep=bare.parent != folder))
        own = [one for one in beside if one.name not in (MODEL_TOML, CONFIG_PBTXT)]
        versions[1] = _on_disk(root, bare, own)
    return versions


def _model_file(folder: Path, name: str) -> Path | None:
    path = folder / name
    if path.is_file():
        return path
    if name != MODEL_FILE:
        return None
    within = path if path.is_dir() else folder
    files = [one for one in within.glob("*.onnx") if one.is_file()]
    return files[0] if len(files) == 1 else None


def _on_disk(root: Path, file: Path, beside: list[os.DirEntry[str]]) -> VersionFiles:
    problem, real_root = "", root.resolve()
    linked = [Path(one.path) for one in beside if one.is_symlink()]
    for path in [file, *linked]:
        try:
            if path.resolve().is_relative_to(real_root):
                continue
        except RuntimeError:
            problem = f"{path.name!r} is a link that leads back to itself"
        else:
            problem = f"{path.name!r} is a link that leads out of the repository"
        break
    return VersionFiles(file, fingerprint_of(beside), problem)
