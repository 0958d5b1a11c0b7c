"""Scans model repositories for models and versions on disk, and their state.

The model file of a version is <root>/<name>/<version>/model.onnx. The file may have another name if
it is the only one that ends in .onnx, or if the model's settings name it; it may be in a folder
called model.onnx, together with its external data; and without a version it is in <root>/<name>/
itself, as version 1. What is meant to be a model or a version and cannot be served has a reason.
Files and folders that need no such layout are read by `single_files`.

It is one file since all that is found, wherever it is, becomes models under one set of names.
"""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from neurona_server.errors import LoadError, NotLoadedError, quoted
from neurona_server.models.repository.file_versions import FileVersions
from neurona_server.models.repository.listing import (
    Fingerprint,
    Kind,
    describe_file,
    fingerprint_of,
    is_inside,
    list_files,
    list_kinds,
)
from neurona_server.models.repository.model_toml import read_model_toml
from neurona_server.models.repository.settings import CONFIG_PBTXT, MODEL_TOML, ModelSettings
from neurona_server.models.repository.single_files import (
    SETTINGS_SUFFIX,
    GivenKind,
    SingleFile,
    SingleFileReader,
    is_onnx_file,
    kind_of_given,
    name_of_given,
)
from neurona_server.models.repository.triton_config import read_triton_config
from neurona_server.models.repository.unusable import (
    MODEL_FILE,
    MODEL_NAME,
    VERSION_NAME,
    WHOLE_FOLDER,
    NoModelFileError,
    Unusable,
    display,
    explain_in_model,
    explain_in_repository,
    find_model_file,
    is_hidden,
    is_hidden_path,
    misplaced_settings,
    model_format,
    notes_beside,
    state_of,
)
from neurona_server.telemetry.run_journal import files_digest

log = logging.getLogger(__name__)

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

    unusable: Mapping[str, Unusable] = field(default_factory=dict)
    """What is meant to be a version and is none, by the name of its file or folder;
    `WHOLE_FOLDER` is the key of a reason that is about the folder itself."""

    notes: tuple[str, ...] = ()
    """What its owner may have meant otherwise, for the log."""

    single_file: bool = False
    """Whether it is a file without a folder, whose newest version alone is on disk."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing in it is meant to be served."""
        return not (self.versions or self.problem or self.unusable.keys() - {WHOLE_FOLDER})

    def source(self, version: int) -> ModelSource:
        files = self.versions[version]
        return ModelSource(self.name, version, files.path, self.settings, files.fingerprint)


@dataclass
class _Given:
    """What the files and folders that were named to be served are, at one scan."""

    roots: list[Path] = field(default_factory=list)
    models: dict[str, Path] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


class Repository:
    """Folders of models, scanned again and again by any thread.

    The settings of a model are read again only when its files have changed.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        single_models: Sequence[tuple[str, Path]] = (),
        given: Sequence[Path] = (),
        file_versions: FileVersions | None = None,
    ):
        """Name the folders to scan, without reading them.

        Args:
            roots: Folders of models.
            single_models: Folders that are one model each, with the name of the model.
            given: Files and folders that are served as what they are.
            file_versions: Numbers the versions of files without folders of versions.

        Raises:
            LoadError: A name is invalid or used twice.
        """
        self._roots = tuple(dict.fromkeys(roots))
        self._given = tuple(dict.fromkeys(given))
        self._file_versions = file_versions or FileVersions()
        self._given_kinds: dict[Path, GivenKind] = {}
        self._single_files = SingleFileReader()
        self._single_models = dict(single_models)
        if invalid := [name for name in self._single_models if not MODEL_NAME.fullmatch(name)]:
            raise LoadError(f"invalid model name {quoted(invalid[0])}")
        if len(self._single_models) < len(set(single_models)):
            raise LoadError("two folders are given for the same model name")
        self._settings: dict[Path, tuple[Fingerprint, ModelSettings, str]] = {}
        self._root_ids: dict[Path, tuple[int, int]] = {}  # device and inode of non-empty roots
        self._logged_problem = ""
        self._logged_notes: dict[Path, tuple[str, ...]] = {}
        self._scanning = threading.Lock()

    def scan(self) -> dict[str, ModelFolder]:
        """Return every model folder by name, including one without versions.

        A file or folder that is meant to be a model and cannot be one has a folder here, too,
        without versions and with the reason; its name is made printable. A name that is in two
        roots has a problem. Files count as complete, since they are loaded at once.

        Raises:
            LoadError: A root cannot be read.
        """
        with self._scanning:
            return self._scan(complete=True)

    def scan_or_keep(self) -> dict[str, ModelFolder] | None:
        """Return what `scan` returns, or None when a root cannot be read, which is logged once."""
        problem = ""
        folders = None
        try:
            with self._scanning:
                folders = self._scan(complete=False)
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

    def scan_with_config(self, name: str, config: str) -> ModelFolder | None:
        """Return the folder of a model as if `config` were its only file of settings.

        None if the repository has no such model.
        """
        with self._scanning:
            given = self._sort_given()
            roots, models = [*self._roots, *given.roots], self._single_models | given.models
            places = [(root, root / name) for root in roots if (root / name).is_dir()]
            if name in models:
                places.append((models[name], models[name]))
            if len(places) > 1:
                used = [
                    one for one in places if not self._scan_folder(one[0], name, one[1]).is_empty
                ]
                places = used or places[:1]
            if len(places) != 1:  # none, a file, or a duplicate, which has a problem
                folder = self._scan(complete=True).get(name)
                if folder is None or not folder.single_file or folder.problem:
                    return folder
                path = next(iter(folder.versions.values())).path.parent
                settings, problem = _settings_from(path, config)
                return replace(folder, settings=settings, problem=problem)
            root, path = places[0]
            return self._scan_folder(root, name, path, _settings_from(path, config))

    def _sort_given(self) -> "_Given":
        """Sort the files and folders that are served as they are by what they are now."""
        given = _Given()
        for path in self._given:
            kind = self._kind_of_given(path)
            if kind is GivenKind.REPOSITORY:
                given.roots += [] if path in self._roots else [path]
            elif kind is GivenKind.MODEL_FOLDER:
                given.models[name_of_given(path, kind)] = path
            else:
                given.files.append(path)
        return given

    def _kind_of_given(self, path: Path) -> GivenKind:
        """Return what a path stands for: what it did when it was there first.

        Else models would be unloaded while their folder is replaced, or get other names.
        """
        kind = self._given_kinds.get(path)
        if kind is None:
            kind = GivenKind.REPOSITORY if path in self._root_ids else kind_of_given(path)
            if kind is GivenKind.MODEL_FOLDER or (kind is GivenKind.FILE and path.is_file()):
                self._given_kinds[path] = kind
        return kind

    def _scan(self, *, complete: bool) -> dict[str, ModelFolder]:
        """Scan everything; `complete` if no file can still be being written."""
        folders: dict[str, ModelFolder] = {}
        root_of: dict[str, Path] = {}
        given = self._sort_given()
        roots = [*self._roots, *given.roots]
        files: list[tuple[Path, Path | None]] = [(path, None) for path in given.files]
        for number, root in enumerate(roots, 1):
            loose = files if root in given.roots else None
            for name, folder in self._scan_root(root, loose).items():
                other = folders.get(name)
                if other is None or other.is_empty:
                    folders[name], root_of[name] = folder, root
                elif folder.is_empty:
                    note = f"its folder in repository {number} holds no version"
                    folders[name] = replace(other, notes=(*other.notes, note))
                else:
                    # Numbers, not paths: clients see the message.
                    first = roots.index(root_of[name]) + 1
                    problem = f"duplicate model: it is in repositories {first} and {number}"
                    folders[name] = replace(other, problem=problem)
        models = self._single_models | given.models
        for name, path in models.items():
            folder = self._scan_folder(path, name, path)
            if name in root_of:
                folder = replace(folder, problem="duplicate model: it is in a repository, too")
            folders[name] = folder
        for name, folder in self._scan_files(files, complete=complete).items():
            other = folders.get(name)
            if other is not None and not other.is_empty:
                problem = f"duplicate model: there is a folder {name!r}, too"
                folders[name] = replace(other, problem=problem)
            else:
                folders[name] = folder
        paths = {root / name for name, root in root_of.items()} | set(models.values())
        self._settings = {path: entry for path, entry in self._settings.items() if path in paths}
        return dict(sorted(folders.items()))

    def _scan_files(
        self, files: Sequence[tuple[Path, Path | None]], *, complete: bool
    ) -> dict[str, ModelFolder]:
        """Return the models that are single files.

        Args:
            files: Each file, and the folder that links must not leave; None for one that was named.
            complete: See `_scan`.
        """
        folders: dict[str, ModelFolder] = {}
        if not files:
            return folders
        # Inside the lock, or another process might have seen a newer state already.
        with self._file_versions.locked():
            for path, root in files:
                name = name_of_given(path, GivenKind.FILE)
                file = self._single_files.read(path)
                folder = self._scan_file(name, file, root, complete=complete)
                if name in folders:
                    problem = "duplicate model: two files have this name"
                    folder = replace(folders[name], problem=problem)
                folders[name] = folder
        self._single_files.forget_others([path for path, _ in files])
        return folders

    def _scan_file(
        self, name: str, file: SingleFile, root: Path | None, *, complete: bool
    ) -> ModelFolder:
        settings, problem = self._single_files.read_settings(file)
        if root is not None and not problem:
            problem = _leaving_link(root, [file.path])
        if not file.fingerprint:
            unusable = {WHOLE_FOLDER: Unusable(file.problem)}
            return ModelFolder(name, {}, settings, problem, unusable, single_file=True)
        digest = files_digest(file.fingerprint)
        number = self._file_versions.number(name, digest, complete=complete)
        versions = {number: VersionFiles(file.path, file.fingerprint)}
        return ModelFolder(name, versions, settings, problem, single_file=True)

    def _scan_root(
        self, root: Path, loose_files: list[tuple[Path, Path | None]] | None
    ) -> dict[str, ModelFolder]:
        """Scan a folder of models; with a list of loose files, add those that are models to it."""
        try:
            kinds = list_kinds(root)
            status = root.stat()
        except OSError as error:
            reason = f"cannot read the repository {root}: {error.strerror}"
            raise LoadError(reason) from error
        folders = {}
        for name, kind in kinds.items():
            if is_hidden(name):
                continue
            if loose_files is not None and kind is Kind.FILE:
                if is_onnx_file(name):
                    loose_files.append((root / name, root))
                continue
            if reason := explain_in_repository(root / name, kind):
                entry = Unusable(reason, state_of(root / name))
                shown = display(name)
                folders[shown] = ModelFolder(shown, {}, unusable={WHOLE_FOLDER: entry})
            elif kind is Kind.FOLDER:
                folders[name] = self._scan_folder(root, name, root / name)
        root_id = (status.st_dev, status.st_ino)
        if folders or any(path.parent == root for path, _ in loose_files or ()):
            self._root_ids[root] = root_id
        elif self._root_ids.get(root, root_id) != root_id:
            raise LoadError(
                f"the repository {root} was replaced by an empty folder: is its volume unmounted?"
            )
        self._log_notes(root, kinds)
        return folders

    def _log_notes(self, root: Path, kinds: Mapping[str, Kind]) -> None:
        """Log once what is in a repository and is not meant to be a model."""
        models = [n for n, kind in kinds.items() if kind is Kind.FOLDER and not is_hidden(n)]
        stems = {Path(name).stem for name in kinds if root in self._given and is_onnx_file(name)}
        files = [
            name
            for name, kind in kinds.items()
            if kind is Kind.FILE and Path(name).stem not in stems
        ]
        notes = misplaced_settings(files, here=False)
        if models and all(VERSION_NAME.fullmatch(name) for name in models):
            notes.append("its folders are named like versions: for one model, use --model NAME=DIR")
        others = [
            display(name)
            for name, kind in kinds.items()
            if is_hidden(name)
            or (kind is not Kind.FOLDER and not explain_in_repository(root / name, kind))
            if not (Path(name).stem in stems and Path(name).suffix == SETTINGS_SUFFIX)
        ]
        if self._logged_notes.get(root) == (*notes, *others):
            return
        self._logged_notes[root] = (*notes, *others)
        for note in notes:
            log.warning("repository %s: %s", root, note)
        if others:
            log.info("repository %s: not meant as models: %s", root, ", ".join(others[:20]))

    def _scan_folder(
        self,
        root: Path,
        name: str,
        path: Path,
        override: tuple[ModelSettings, str] | None = None,
    ) -> ModelFolder:
        """Scan a model's folder; `override` are settings to take, and a problem, for its own."""
        try:
            if path != root and path.is_symlink() and not is_inside(path, root):
                problem = "it is a link that leads out of the repository"
                return ModelFolder(name, {}, problem=problem)
            settings, problem = override or self._read_settings_if_changed(path)
            versions, unusable, notes = _scan_versions(
                root, path, settings.model_file or MODEL_FILE
            )
        except OSError as error:  # removed meanwhile, or not readable
            return ModelFolder(name, {}, problem=f"it cannot be read: {error.strerror}")
        except RuntimeError:
            return ModelFolder(name, {}, problem="it is a link to itself")
        return ModelFolder(name, versions, settings, problem, unusable, tuple(notes))

    def _read_settings_if_changed(self, path: Path) -> tuple[ModelSettings, str]:
        """Return the settings in a model's folder, and why they cannot be read, or ""."""
        # Files of labels may be in a subfolder.
        fingerprint = fingerprint_of(list_files(path, recursive=True, skip=VERSION_NAME))
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


def _scan_versions(
    root: Path, folder: Path, model_file: str
) -> tuple[dict[int, VersionFiles], dict[str, Unusable], list[str]]:
    """Return the versions by number, what is none and why, and notes for the log.

    A version that cannot be read does not hide the others.
    """
    kinds = {name: kind for name, kind in list_kinds(folder).items() if not is_hidden(name)}
    versions: dict[int, VersionFiles] = {}
    unusable: dict[str, Unusable] = {}
    notes = misplaced_settings((n for n, kind in kinds.items() if kind is Kind.FILE), here=True)
    numbers = [n for n, kind in kinds.items() if kind is Kind.FOLDER and VERSION_NAME.fullmatch(n)]
    for number in sorted(numbers, key=int):
        path = folder / number
        try:
            file = find_model_file(path, model_file)
            files = list(list_files(path, recursive=True))
            versions[int(number)] = _check_files(root, file, files)
            names = sorted(os.path.relpath(one.path, path) for one in files)
            names = [name for name in names if not is_hidden_path(name)]
            beside = misplaced_settings(names, here=False)
            beside += notes_beside(str(file.relative_to(path)), names)
            notes += [f"version {number}: {note}" for note in beside]
        except NoModelFileError as error:
            unusable[number] = Unusable(str(error), state_of(path))
        except FileNotFoundError:  # removed meanwhile
            continue
        except OSError as error:
            problem = f"it cannot be read: {error.strerror}"
            versions[int(number)] = VersionFiles(path / model_file, _UNREADABLE, problem)
    others = [name for name in kinds if name not in numbers]
    if not versions:
        stray = [name for name in others if kinds[name] is Kind.FILE and model_format(name)]
        try:
            file = find_model_file(folder, model_file)
        except NoModelFileError as error:
            reason = f"no version: {str(error).removeprefix('no model file: ')}"
            whole = Unusable(reason, state_of(folder))
            if stray and not numbers:  # they are meant to be its only version
                unusable[WHOLE_FOLDER] = whole
                others = [name for name in others if name not in stray]
        else:
            entries = list_files(file.parent, recursive=file.parent != folder)
            files = [entry for entry in entries if entry.name not in (MODEL_TOML, CONFIG_PBTXT)]
            versions[1] = _check_files(root, file, files)
            if "1" in unusable:
                notes.append(f"version 1 is {file.name!r}; '1': {unusable.pop('1').reason}")
            notes += notes_beside(file.name, stray)
            others = [name for name in others if name not in (file.name, *stray)]
    for name in others:
        if reason := explain_in_model(folder / name, kinds[name], root):
            unusable[display(name)] = Unusable(reason, state_of(folder / name))
    if not (versions or unusable):
        unusable[WHOLE_FOLDER] = whole
    return versions, unusable, notes


def _check_files(root: Path, model: Path, files: Sequence[os.DirEntry[str]]) -> VersionFiles:
    links = [Path(entry.path) for entry in files if entry.is_symlink()]
    return VersionFiles(model, fingerprint_of(files), _leaving_link(root, [model, *links]))


def _leaving_link(root: Path, paths: Sequence[Path]) -> str:
    """Return which of the paths, all links followed, is not in the repository, or ""."""
    for path in paths:
        try:
            if is_inside(path, root):
                continue
        except RuntimeError:
            return f"{path.name!r} is a link to itself"
        return f"{path.name!r} is a link that leads out of the repository"
    return ""


def _settings_from(folder: Path, config: str) -> tuple[ModelSettings, str]:
    """Return the settings in a config.pbtxt's text, and why it cannot be used, or ""."""
    try:
        return read_triton_config(folder, config), ""
    except LoadError as error:
        return ModelSettings(), str(error)


def has_changed(source: ModelSource) -> bool:
    """Return whether a file of the version has changed or gone since the version was scanned."""
    try:
        return any(describe_file(str(row[0]), os.stat(row[0])) != row for row in source.fingerprint)
    except OSError:
        return True
