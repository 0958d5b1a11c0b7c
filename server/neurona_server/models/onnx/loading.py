"""From a model's file to ONNX Runtime's session on it.

Loading releases the GIL, except for a copy of the model when it comes as bytes (70 ms for 132 MB):
so a model's own file is loaded by its path, which is safe, for it is read and not mapped. Not so
external data: see external_data.py.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

import onnxruntime

from neurona_server.errors import LoadError
from neurona_server.models.onnx import graph_cache, runtime
from neurona_server.models.onnx.external_data import find_external, read_external, temporary_copy
from neurona_server.models.onnx.model_file import GraphOutline, read_outline
from neurona_server.models.onnx.runtime import CPU, RuntimeOptions

log = logging.getLogger(__name__)

_NOISE = (
    re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"^Load model from .+? failed: ?"),
    re.compile(r"^\S+\.(?:cc|h):\d+ .*?\)(?: const)? (?=[A-Z])"),
)
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[^\s\"'/\\]*[/\\])+(?=[^\s\"'/\\])")


def reason_of(error: Exception, path: Path) -> str:
    """What ONNX Runtime says, for a caller: without its own source lines, and without paths, so
    that who asks what is served learns no folder of the server. `path` is the model's."""
    text = str(error).strip().partition("\n")[0]
    for noise in _NOISE:
        text = noise.sub("", text)
    # By itself, for it may hold spaces: elsewhere these end a path.
    for folder in {path.parent, path.parent.absolute(), path.parent.resolve()} - {Path()}:
        text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), "…/")
    return _PATH.sub("…/", text)[:300]


# ONNX Runtime looks here for external data that it was not given: there are none.
_NOWHERE = os.path.join(os.sep, "nonexistent", "neurona")


def load(path: Path, options: RuntimeOptions, threads: int) -> onnxruntime.InferenceSession:
    """Raises LoadError."""
    found = read_outline(path)
    providers = runtime.usable_providers(options)
    if not providers:
        wanted = ", ".join(options.providers)
        raise LoadError(f"none of its providers ({wanted}) can be used here")
    loader = _Loader(path, found, options, threads)
    try:
        try:
            return loader.load(providers)
        except Exception as error:  # ONNX Runtime raises a class of its own for each status
            if isinstance(error, LoadError) or CPU not in providers or providers == [CPU]:
                raise
            log.warning("%s: cannot be loaded on a GPU: %s", path, error)
            return loader.load([CPU])
    except (LoadError, MemoryError):
        raise
    except Exception as error:
        log.info("%s: %s", path, error)
        raise LoadError(f"ONNX Runtime cannot load it: {reason_of(error, path)}") from error


class _Loader:
    def __init__(
        self, path: Path, found: GraphOutline, options: RuntimeOptions, threads: int
    ) -> None:
        self._path = path
        self._found = found
        self._options = options
        self._threads = threads

    def load(self, providers: list[Any]) -> onnxruntime.InferenceSession:
        if self._found.external:
            return self._with_external(providers)
        folder = self._options.cache
        if (
            folder is not None
            and providers == [CPU]  # what a GPU's provider makes of a graph is its own
            and graph_cache.saves_time(self._found.nodes, self._found.size)
            and (cache := graph_cache.open_cache(folder)) is not None
        ):
            return self._through(cache, providers)
        return self._open(os.fspath(self._path), providers)

    def _with_external(self, providers: list[Any]) -> onnxruntime.InferenceSession:
        files = find_external(self._path, self._found.external)
        settings = self._settings()
        # onnxruntime 1.24 and later. It does not reach into graphs inside of nodes, and 1.24 looks
        # for ./weights by another name than it was given.
        give = getattr(settings, "add_external_initializers_from_files_in_memory", None)
        plain = all(os.path.normpath(location) == location for location in files)
        if give is None or self._found.nested or not plain:
            with temporary_copy(self._path, files) as copy:
                return self._open(os.fspath(copy), providers, settings)
        contents = read_external(files)
        settings.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", _NOWHERE
        )
        give(list(contents), list(contents.values()), list(map(len, contents.values())))
        return self._open(self._read(), providers, settings)

    def _through(
        self, cache: graph_cache.GraphCache, providers: list[Any]
    ) -> onnxruntime.InferenceSession:
        content = self._read()  # what is hashed is what is optimised, whoever writes to the file
        key = graph_cache.key(
            content, onnxruntime.__version__, onnxruntime.get_build_info(), *providers
        )
        entry = cache.get(key)
        if entry == b"":
            return self._open(content, providers)
        if entry is not None:
            try:
                return self._open(entry, providers, self._as_it_is())
            except Exception as error:
                log.warning("%s: its optimised graph cannot be loaded: %s", self._path, error)
                cache.discard(key)
        opened: list[onnxruntime.InferenceSession] = []

        def write(target: Path) -> None:
            settings = self._settings()
            settings.optimized_model_filepath = os.fspath(target)
            opened.append(self._open(content, providers, settings))
            saved = self._open(os.fspath(target), providers, self._as_it_is())
            if _face(saved) != _face(opened[0]):
                log.info(
                    "%s: its optimised graph takes other inputs, so it is not kept", self._path
                )
                os.truncate(target, 0)  # so that it is not tried at every start

        try:
            cache.put(key, write)
        except Exception as error:  # the model is wrong, which shows again; or the disk is full
            log.info("%s: its optimised graph is not kept: %s", self._path, error)
        return opened[0] if opened else self._open(content, providers)

    def _as_it_is(self) -> onnxruntime.SessionOptions:
        settings = self._settings()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return settings

    def _open(
        self,
        model: str | bytes,
        providers: list[Any],
        settings: onnxruntime.SessionOptions | None = None,
    ) -> onnxruntime.InferenceSession:
        # By itself it would print what went wrong, and try other providers.
        return onnxruntime.InferenceSession(
            model, settings or self._settings(), providers=providers, enable_fallback=0
        )

    def _settings(self) -> onnxruntime.SessionOptions:
        options = self._options
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # errors
        settings.intra_op_num_threads = self._threads
        settings.enable_cpu_mem_arena = options.arena
        entries = {"session.record_ep_graph_assignment_info": "1"}
        if not options.spinning:
            # A thread that spins for work after a run takes the CPU from the transport's thread.
            entries["session.intra_op.allow_spinning"] = "0"
        if options.cpu_memory_bytes:
            runtime.limit_cpu_memory(options.cpu_memory_bytes)
            entries["session.use_env_allocators"] = "1"
        if "cpu" not in options.providers:
            entries["session.disable_cpu_ep_fallback"] = "1"
        for key, value in entries.items():
            settings.add_session_config_entry(key, value)
        return settings

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise LoadError(f"its file cannot be read: {error.strerror}") from error


def _face(session: onnxruntime.InferenceSession) -> list[Any]:
    """What callers see of a graph. ONNX Runtime 1.31 saves some graphs in a way that changes it:
    before IR 4 all weights stand among the inputs, and a few lose their value there."""
    groups = [
        session.get_inputs(),
        session.get_overridable_initializers(),
        session.get_outputs(),
    ]
    nodes = [[(node.name, node.type, node.shape) for node in group] for group in groups]
    return [*nodes, session.get_modelmeta().custom_metadata_map]
