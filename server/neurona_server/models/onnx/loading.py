"""Loads a model's file into an ONNX Runtime session.

Loading releases the GIL, except for copying a model that is passed as bytes (70 ms for 132 MB): so
a model's own file is loaded by its path, which is safe since the file is read and not mapped.
External data are not safe: see external_data.py.
"""

import logging
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime

from neurona_server.errors import LoadError
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx import convolution_options, graph_cache, plugin_providers, runtime
from neurona_server.models.onnx.compiled_models import read_traits
from neurona_server.models.onnx.compiling import find_compiler
from neurona_server.models.onnx.engine_cache import EngineFolder
from neurona_server.models.onnx.external_data import (
    COPY_BYTES,
    MAX_TENSOR_BYTES,
    NoRoomError,
    find_copy_folder,
    find_external,
    read_external,
    temporary_copy,
)
from neurona_server.models.onnx.model_file import GraphOutline, read_outline
from neurona_server.models.onnx.provider_options import cuda_options
from neurona_server.models.onnx.runtime import CPU, Provider, RuntimeOptions
from neurona_server.models.onnx.trial_run import try_run

log = logging.getLogger(__name__)

MAX_REASON_LENGTH = 300
"""Characters of ONNX Runtime's messages that clients see."""

# An error of CUDA or of a library of it, between C++ signatures and the name of the machine.
_LIBRARY_FAILURE = re.compile(
    r"(?:\S+\.(?:cc|cu|h):\d+ .*?)?\b([A-Z]+ failure \d+: [^;]*?) ; GPU=.*$"
)
_PREFIXES = (
    re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"^Load model from .+? failed: ?"),
    re.compile(r"^\S+\.(?:cc|h):\d+ .*?\)(?: const)? (?=[A-Z])"),
)
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[^\s\"'/\\]*[/\\])+(?=[^\s\"'/\\])")

_HINTS = {
    ("tensor(double)", "ZipMap"): "export it from float32 inputs, X.astype(numpy.float32), or with "
    "zipmap=False",
}
"""What to do about messages that scikit-learn's exporters cause: by parts of the message."""

# ONNX Runtime looks for external data that it was not given here, where there are none.
_NOWHERE = os.path.join(os.sep, "nonexistent", "neurona")

# Linux: files in memory. A copy there takes a third of what passing the contents does.
_MEMORY = Path("/dev/shm")  # noqa: S108  its folder is private


class LoadedModel(NamedTuple):
    """A session and what its load has shown."""

    session: onnxruntime.InferenceSession
    outline: GraphOutline
    problem: str = ""
    """Why the first of its providers could not load or run it, if that was tried."""

    engines: EngineFolder | None = None
    """Where its provider keeps what it has compiled."""


def load(
    path: Path,
    options: RuntimeOptions,
    threads: int,
    cancellation: LoadCancellation,
    device: int = 0,
) -> LoadedModel:
    """Load the model at `path` with the first of its providers that can load and run it.

    Args:
        path: The model's file.
        options: How it is run.
        threads: CPU threads of one run on the CPU.
        cancellation: Ends the load early, where ONNX Runtime looks for that: between the steps in
            which it optimises the graph.
        device: Number of the CUDA device, for providers that use one.

    Raises:
        LoadError: The file is not a model, ONNX Runtime cannot load it, or the load is cancelled.
    """
    outline = read_outline(path)
    providers = runtime.usable_providers(options, device)
    if not providers:
        names = ", ".join(options.providers)
        raise LoadError(f"none of its providers ({names}) is available")
    loader = _Loader(path, outline, options, threads, cancellation)
    try:
        return loader.load(providers)
    except (LoadError, MemoryError):
        raise
    except Exception as error:  # ONNX Runtime raises a class of its own for each status
        cancellation.raise_if_cancelled()
        log.info("%s: %s", path, error)
        reason = public_reason(error, path)
        hints = [hint for parts, hint in _HINTS.items() if all(part in reason for part in parts)]
        raise LoadError("; ".join([f"ONNX Runtime cannot load it: {reason}", *hints])) from error


def load_with_cuda_graphs(
    path: Path, options: RuntimeOptions, cancellation: LoadCancellation, device: int
) -> onnxruntime.InferenceSession:
    """Load the model at `path` once more, into a session that captures CUDA graphs.

    Args:
        path: The model's file.
        options: How it is run.
        cancellation: Ends the load early.
        device: Number of the CUDA device.

    Raises:
        Exception: ONNX Runtime cannot make graphs of the model, as when it has control flow or
            nodes that run on the CPU; or there is no memory left for it; or it is cancelled.
    """
    values = cuda_options(options.provider_options, device, options.gpu_memory_bytes, graphs=True)
    values |= convolution_options.remembered_options(path, values) or {}
    loader = _Loader(path, read_outline(path), options, 1, cancellation)
    # The CPU, where ONNX Runtime puts shapes; named, it is an error where the options leave it out.
    cpu = [CPU] if "cpu" in options.providers else []
    session = loader.load_once([(runtime.CUDA, values), *cpu])
    session.disable_fallback()
    return session


def load_content(
    path: Path,
    content: bytes,
    outline: GraphOutline,
    options: RuntimeOptions,
    threads: int,
    cancellation: LoadCancellation,
    providers: list[Provider],
    *,
    optimised: bool = True,
) -> onnxruntime.InferenceSession:
    """Load a graph that was made of the model at `path`, into another session.

    Args:
        path: The model's file.
        content: The graph, without external data.
        outline: That of the model.
        options: How it is run.
        threads: CPU threads of one run on the CPU.
        cancellation: Ends the load early.
        providers: Those of ONNX Runtime that run it.
        optimised: Whether ONNX Runtime may replace nodes by others.

    Raises:
        Exception: ONNX Runtime cannot load it, or it is cancelled.
    """
    loader = _Loader(path, outline, options, threads, cancellation)
    return loader.load_content(content, providers, optimised=optimised)


def public_reason(error: Exception, path: Path) -> str:
    """Return ONNX Runtime's message without its source lines and without the server's paths.

    Clients that list models see it. `path` is that of the model.
    """
    text = str(error).strip().partition("\n")[0]
    text = _LIBRARY_FAILURE.sub(r"\1", text)
    for prefix in _PREFIXES:
        text = prefix.sub("", text)
    # The model's folder first, since it may contain spaces, at which the pattern ends a path.
    for folder in {path.parent, path.parent.absolute(), path.parent.resolve()} - {Path()}:
        text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), "…/")
    return _PATH.sub("…/", text)[:MAX_REASON_LENGTH]


class _Loader:
    def __init__(
        self,
        path: Path,
        outline: GraphOutline,
        options: RuntimeOptions,
        threads: int,
        cancellation: LoadCancellation,
    ) -> None:
        self._path = path
        self._outline = outline
        self._options = options
        self._threads = threads
        self._cancellation = cancellation

    def load(self, providers: list[Provider]) -> LoadedModel:
        """Load with all providers; while the first of them fails, without it.

        The CPU is the last resort: what it cannot load fails. A provider that loads the model but
        fails in its first run is kept only if the other ones fail in that run, too.
        """
        refused: LoadedModel | None = None  # the first that loaded the model and could not run it
        problem = ""
        while True:
            name = runtime.full_name(providers[0])
            rest = [] if name == CPU else providers[1:]
            try:
                loaded = self._load(providers)
            except Exception as failure:
                self._cancellation.raise_if_cancelled()
                if isinstance(failure, LoadError) or not rest:
                    if refused is not None:
                        return refused
                    raise
                reason = public_reason(failure, self._path)
                log.warning("%s: cannot be loaded by %s: %s", self._path, name, failure)
                problem = problem or f"{runtime.short_name(name)} could not load it: {reason}"
                providers = rest
                continue
            started = loaded.session.get_providers()[0]
            if started == CPU != name and rest:
                # ONNX Runtime has logged why; on the CPU it gets more threads, and the cache.
                providers = [CPU] if CPU in map(runtime.full_name, rest) else rest
                continue
            if started == CPU and refused is None:
                return loaded._replace(problem=problem)
            # The largest first: TensorRT may compile for all shapes between it and the next one.
            largest = 0 if started == runtime.CUDA else self._options.max_rows
            error = try_run(loaded.session, self._cancellation, largest)
            if error is None:
                session = self._choose_options(loaded.session, providers)
                return loaded._replace(session=session, problem=problem)
            refused = refused or loaded._replace(problem=problem)
            if not rest:
                return refused
            log.warning("%s: %s fails in its first run: %s", self._path, started, error)
            reason = public_reason(error, self._path)
            problem = problem or f"{runtime.short_name(started)} could not run it: {reason}"
            providers = rest

    def load_once(self, providers: list[Provider]) -> onnxruntime.InferenceSession:
        """Load with all providers, and try no other way."""
        return self._load_session(providers)

    def load_content(
        self, content: bytes, providers: list[Provider], *, optimised: bool
    ) -> onnxruntime.InferenceSession:
        """Load a graph in memory, and try no other way."""
        if not optimised:
            return self._open(content, providers, self._settings_without_optimisation())
        cache = self._cache_for(providers, self._outline.nodes, len(content))
        if cache is not None:
            session = self._load_through_cache(cache, providers, content)
        else:
            session = self._open(content, self._with_remembered_options(providers))
        session.disable_fallback()
        return session

    def _choose_options(
        self, session: onnxruntime.InferenceSession, providers: list[Provider]
    ) -> onnxruntime.InferenceSession:
        """Return the session, or a faster one with other options for convolutions."""
        if not runtime.full_name(providers[0]) == session.get_providers()[0] == runtime.CUDA:
            return session
        values = runtime.options_of(providers[0])
        if (
            convolution_options.remembered_options(self._path, values) is not None
            or "gpu_mem_limit" in values  # of one session, not of two
            or not convolution_options.has_room(self._outline.size, values)
            or not read_traits(self._path).has_convolution
        ):
            return session

        def load_with(options: Mapping[str, str]) -> onnxruntime.InferenceSession:
            return self._load_session([(runtime.CUDA, dict(options)), *providers[1:]])

        return convolution_options.choose_options(
            self._path, session, values, load_with, self._cancellation
        )

    def _with_remembered_options(self, providers: list[Provider]) -> list[Provider]:
        """Return the providers with what an earlier session of the file has chosen.

        So a later session is loaded once, and takes no memory for a second copy.
        """
        if runtime.full_name(providers[0]) != runtime.CUDA:
            return providers
        values = runtime.options_of(providers[0])
        remembered = convolution_options.remembered_options(self._path, values)
        if not remembered:
            return providers
        return [(runtime.CUDA, {**values, **remembered}), *providers[1:]]

    def _load(self, providers: list[Provider]) -> LoadedModel:
        compiler = find_compiler(
            providers, self._path, self._outline.external, self._options, self._cancellation
        )
        if compiler is None:
            session = self._load_session(self._with_remembered_options(providers))
            return LoadedModel(session, self._outline)
        session, engines = compiler.load(self._load_session)
        return LoadedModel(session, self._outline, engines=engines)

    def _load_session(self, providers: list[Provider]) -> onnxruntime.InferenceSession:
        if self._outline.external:
            return self._load_with_external_data(providers)
        cache = self._cache_for(providers, self._outline.nodes, self._outline.size)
        if cache is not None:  # hashed and optimised from one read of the file
            return self._load_through_cache(cache, providers, self._read_model())
        return self._open(os.fspath(self._path), providers)

    def _cache_for(
        self, providers: list[Provider], nodes: int, size: int
    ) -> graph_cache.GraphCache | None:
        """Return the cache of optimised graphs if it saves time for a graph of this size."""
        folder = self._options.cache
        # A GPU's provider optimises graphs in its own way.
        if folder is None or providers != [CPU] or not graph_cache.saves_time(nodes, size):
            return None
        return graph_cache.open_cache(folder)

    def _load_with_external_data(self, providers: list[Provider]) -> onnxruntime.InferenceSession:
        files = find_external(self._path, self._outline.external)
        settings = self._settings()
        # onnxruntime 1.24 and later. It does not reach into graphs inside nodes, and 1.24 looks
        # for ./weights under a different name than it was given.
        add_files = getattr(settings, "add_external_initializers_from_files_in_memory", None)
        sizes = [file.stat().st_size for file in files.values()]
        needs_copy = (
            self._outline.nested_external
            or min(self._outline.longest_external, max(sizes)) > MAX_TENSOR_BYTES
            or any(os.path.normpath(location) != location for location in files)
        )
        if add_files is None or needs_copy or sum(sizes) >= COPY_BYTES:
            try:
                return self._load_copy(files, sum(sizes), providers)
            except NoRoomError:
                if add_files is None or needs_copy:
                    raise
            log.info("%s: its external data are read: no room for a copy", self._path)
        contents = read_external(files)
        settings.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", _NOWHERE
        )
        add_files(list(contents), list(contents.values()), list(map(len, contents.values())))
        return self._open(self._read_model(), providers, settings)

    def _load_through_cache(
        self, cache: graph_cache.GraphCache, providers: list[Provider], content: bytes
    ) -> onnxruntime.InferenceSession:
        key = graph_cache.cache_key(
            content, onnxruntime.__version__, onnxruntime.get_build_info(), CPU
        )
        entry = cache.get(key)
        if entry == b"":
            return self._open(content, providers)
        if entry is not None:
            try:
                return self._open(entry, providers, self._settings_without_optimisation())
            except Exception as error:
                log.warning("%s: cached graph cannot be loaded: %s", self._path, error)
                cache.discard(key)
        opened: list[onnxruntime.InferenceSession] = []

        def write(target: Path) -> None:
            settings = self._settings()
            settings.optimized_model_filepath = os.fspath(target)
            session = self._open(content, providers, settings)
            opened.append(session)
            saved = self._open(os.fspath(target), providers, self._settings_without_optimisation())
            if _interface(saved) == _interface(session):
                opened.append(saved)  # what later loads get
            else:
                log.info("%s: not cached: the optimised graph has other inputs", self._path)
                os.truncate(target, 0)  # so that it is not tried at every start

        try:
            cache.put(key, write)
        except Exception as error:  # an invalid model, which fails again below, or a full disk
            log.info("%s: not cached: %s", self._path, error)
        return opened[-1] if opened else self._open(content, providers)

    def _open(
        self,
        model: str | bytes,
        providers: list[Provider],
        settings: onnxruntime.SessionOptions | None = None,
    ) -> onnxruntime.InferenceSession:
        settings = settings or self._settings()
        if runtime.full_name(providers[0]) in runtime.CUDA_PROVIDERS:
            settings.intra_op_num_threads = self._options.gpu_threads
        # onnxruntime 1.24 and later.
        set_flag = getattr(settings, "set_load_cancellation_flag", lambda _: None)
        given: list[Provider] | None = providers
        if any(plugin_providers.is_plugin(runtime.full_name(one)) for one in providers):
            for one in providers:
                if one != CPU:  # which every session has
                    plugin_providers.add_provider(
                        settings, runtime.full_name(one), runtime.options_of(one)
                    )
            given = None
        with self._cancellation.interrupting(lambda: set_flag(True)):
            # With its fallback, it would print what went wrong and try other providers.
            session = onnxruntime.InferenceSession(
                model, settings, providers=given, enable_fallback=0
            )
        # It would keep the content for other providers: as much memory as the weights take.
        vars(session).pop("_model_bytes", None)
        return session

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

    def _settings_without_optimisation(self) -> onnxruntime.SessionOptions:
        settings = self._settings()
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return settings

    def _load_copy(
        self, files: Mapping[str, Path], nbytes: int, providers: list[Provider]
    ) -> onnxruntime.InferenceSession:
        """Load a copy of the model and its external data, of `nbytes`."""
        folders = [Path(tempfile.gettempdir())]
        cache = self._options.cache
        if cache is not None and graph_cache.open_cache(cache) is not None:
            folders.append(cache)
        folders.append(_MEMORY)
        folder = find_copy_folder(self._outline.size + nbytes, folders)
        if folder is None:
            raise NoRoomError(
                f"its external data of {nbytes:,} bytes cannot be copied: no room (expected it in "
                "the folder for temporary files, TMPDIR, or for the cache)"
            )
        with temporary_copy(self._path, files, folder, self._note_progress) as copy:
            if read_outline(copy) != self._outline:  # it may name other files now
                raise LoadError("its file was changed while it was loaded")
            return self._open(os.fspath(copy), providers)

    def _note_progress(self) -> None:
        self._cancellation.raise_if_cancelled()
        self._cancellation.note_progress()

    def _read_model(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise LoadError(f"its file cannot be read: {error.strerror}") from error


def _interface(session: onnxruntime.InferenceSession) -> list[Any]:
    """Return what callers see of a graph: inputs, outputs and metadata.

    ONNX Runtime 1.31 saves some graphs so that it changes: before IR 4 all weights are among the
    inputs, and a few of them lose their values.
    """
    groups = [
        session.get_inputs(),
        session.get_overridable_initializers(),
        session.get_outputs(),
    ]
    nodes = [[(node.name, node.type, node.shape) for node in group] for group in groups]
    return [*nodes, session.get_modelmeta().custom_metadata_map]
