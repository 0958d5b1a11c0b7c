"""Loads models with the providers that compile them: TensorRT and TensorRT-RTX.

They get what compiling depends on from the model's file, and a folder that keeps what they have
compiled. Written from ONNX Runtime's documentation and sources; not run on a GPU yet.
"""

import contextlib
import ctypes
import importlib.util
import logging
import sys
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Final, Protocol

import onnxruntime

from neurona_server.errors import LoadError
from neurona_server.models.load_cancellation import LoadCancellation
from neurona_server.models.onnx import runtime
from neurona_server.models.onnx.compiled_models import (
    MISSING_PROFILE,
    read_traits,
    tensorrt_options,
    without_profile,
)
from neurona_server.models.onnx.cuda_driver import CudaDriverError, load_driver
from neurona_server.models.onnx.engine_cache import (
    EngineCache,
    EngineFolder,
    engine_key,
    open_engine_cache,
)
from neurona_server.models.onnx.external_data import find_external
from neurona_server.models.onnx.provider_options import write_flag
from neurona_server.models.onnx.run_failures import FailureKind, classify_failure
from neurona_server.models.onnx.runtime import Provider, RuntimeOptions
from neurona_server.models.onnx.trial_run import long_step

log = logging.getLogger(__name__)

LoadSession = Callable[[list[Provider]], onnxruntime.InferenceSession]

# Of TensorRT 10, for which onnxruntime-gpu 1.31 is built; those that others need first.
_LIBRARIES: Final = (
    ("nvinfer_10.dll", "nvinfer_plugin_10.dll", "nvonnxparser_10.dll")
    if sys.platform == "win32"
    else ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
)
_PACKAGE = "tensorrt_libs"  # of the wheels tensorrt-cu13-libs

_OF_THE_DEVICE = (FailureKind.OUT_OF_MEMORY, FailureKind.DEVICE_LOST)


class TensorrtMissingError(Exception):
    """TensorRT is not installed, or cannot be loaded."""


class Compiler(Protocol):
    """Loads one model with a provider that compiles it."""

    def load(
        self, load_session: LoadSession
    ) -> tuple[onnxruntime.InferenceSession, EngineFolder | None]:
        """Return the session, and the folder that has to be sealed after further runs."""


def find_compiler(
    providers: list[Provider],
    path: Path,
    external: Collection[str],
    options: RuntimeOptions,
    cancellation: LoadCancellation,
) -> Compiler | None:
    """Return what loads a model if the first of its providers compiles, else None.

    Args:
        providers: The providers of the session.
        path: The model's file.
        external: Locations of its external data.
        options: How it is run.
        cancellation: Ends the load early.
    """
    kinds: Mapping[str, type[_TensorrtCompiler] | type[_RtxCompiler]] = {
        "tensorrt": _TensorrtCompiler,
        "nvtensorrtrtx": _RtxCompiler,
    }
    kind = kinds.get(runtime.short_name(runtime.full_name(providers[0])))
    return None if kind is None else kind(providers, path, external, options, cancellation)


class _ProviderCompiler:
    def __init__(
        self,
        providers: list[Provider],
        path: Path,
        external: Collection[str],
        options: RuntimeOptions,
        cancellation: LoadCancellation,
    ) -> None:
        self._name, self._values = runtime.full_name(providers[0]), runtime.options_of(providers[0])
        self._others = providers[1:]
        self._path = path
        self._external = external
        self._options = options
        self._cancellation = cancellation

    def _open_cache(self) -> EngineCache | None:
        folder = self._options.cache
        return None if folder is None else open_engine_cache(folder / "engines")

    def _key(self, values: Mapping[str, str], compiler: str) -> str:
        """Return the key of the engines: of the model, and all that they depend on.

        Raises:
            CudaDriverError: The kind of the GPU cannot be found out.
            OSError: A file cannot be read.
        """
        number = int(values.get("device_id", "0"))
        settings = {key: value for key, value in values.items() if key != "device_id"}
        files = [self._path, *find_external(self._path, self._external).values()]
        texts = [self._name, str(sorted(settings.items())), compiler, *runtime.describe_runtime()]
        return engine_key(files, [*texts, *describe_gpu(number)])


class _TensorrtCompiler(_ProviderCompiler):
    def load(
        self, load_session: LoadSession
    ) -> tuple[onnxruntime.InferenceSession, EngineFolder | None]:
        version = load_tensorrt()
        try:
            return self._load_through_cache(load_session, version)
        except LoadError:
            raise
        except Exception as error:
            if version:
                raise
            raise TensorrtMissingError(
                f"TensorRT is not found (expected {_LIBRARIES[0]}: pip install "
                "'tensorrt-cu13-libs<11')"
            ) from error

    def _load_through_cache(
        self, load_session: LoadSession, version: str
    ) -> tuple[onnxruntime.InferenceSession, EngineFolder | None]:
        derived = tensorrt_options(read_traits(self._path), self._options.max_rows)
        if any(key.startswith("trt_profile_") for key in self._values):
            derived = without_profile(derived)
        with contextlib.ExitStack() as stack:
            engines: EngineFolder | None = None
            if self._pop_cache_flags() and (cache := self._open_cache()) is not None:
                try:
                    key = self._key({**derived, **self._values}, version)
                    engines = stack.enter_context(cache.open(key, self._cancellation))
                except (CudaDriverError, OSError) as error:
                    log.info("%s: its engines are not cached: %s", self._path, error)
            if engines is None:
                return self._load(load_session, derived, {}), None
            return self._load_or_compile(load_session, derived, engines), engines

    def _pop_cache_flags(self) -> bool:
        """Return whether the engines may be in the cache folder; leave out flags without a path.

        With a flag alone, ONNX Runtime would keep them in the working directory, where models of
        one architecture get each other's.
        """
        if "trt_engine_cache_path" in self._values:
            return False
        on = write_flag("tensorrt", value=True)
        timing, has_path = "trt_timing_cache_enable", "trt_timing_cache_path" in self._values
        if self._values.get(timing) == on and not has_path:
            del self._values[timing]
        return self._values.pop("trt_engine_cache_enable", on) == on

    def _load_or_compile(
        self, load_session: LoadSession, derived: Mapping[str, str], engines: EngineFolder
    ) -> onnxruntime.InferenceSession:
        location = cache_options(engines)
        loads_engines = engines.is_complete()
        try:
            return self._load(load_session, derived, location)
        except Exception as error:
            self._cancellation.raise_if_cancelled()
            if not loads_engines or classify_failure(error) in _OF_THE_DEVICE:
                raise
            log.warning("%s: its engines are compiled again: %s", self._path, error)
        engines.discard()
        session = self._load(load_session, derived, location)
        engines.seal()
        return session

    def _load(
        self, load_session: LoadSession, derived: Mapping[str, str], location: Mapping[str, str]
    ) -> onnxruntime.InferenceSession:
        """Load with a profile, or without if the model is not enough to make one."""

        def load(values: Mapping[str, str]) -> onnxruntime.InferenceSession:
            options = {**values, **location, **self._values}
            with long_step(self._cancellation):
                return load_session([(self._name, options), *self._others])

        try:
            return load(derived)
        except Exception as error:
            if MISSING_PROFILE not in str(error) or derived == without_profile(derived):
                raise
            log.info("%s: TensorRT runs parts of it, without a profile: %s", self._path, error)
        return load(without_profile(derived))


class _RtxCompiler(_ProviderCompiler):
    def load(
        self, load_session: LoadSession
    ) -> tuple[onnxruntime.InferenceSession, EngineFolder | None]:
        values = dict(self._values)
        if "nv_runtime_cache_path" not in values and (cache := self._open_cache()) is not None:
            try:
                folder = cache.folder(self._key(values, "rtx"))
                values["nv_runtime_cache_path"] = str(folder)
            except (CudaDriverError, OSError) as error:
                log.info("%s: what is compiled is not cached: %s", self._path, error)
        with long_step(self._cancellation):
            return load_session([(self._name, values), *self._others]), None


def cache_options(engines: EngineFolder) -> dict[str, str]:
    """Return the options by which TensorRT's provider uses these folders."""
    on = write_flag("tensorrt", value=True)
    return {
        "trt_engine_cache_enable": on,
        "trt_engine_cache_path": str(engines.path),
        "trt_timing_cache_enable": on,
        "trt_timing_cache_path": str(engines.timing_path),
    }


def describe_gpu(number: int) -> tuple[str, ...]:
    """Return what engines depend on: the driver, and the name and capability of a GPU.

    The name of a slice of a GPU says its size, on which engines depend, too.

    Raises:
        CudaDriverError: The driver does not describe it.
    """
    driver = load_driver()
    device = driver.device(number)
    return device.name, str(device.compute_capability), str(driver.version)


@cache
def load_tensorrt() -> str:
    """Load TensorRT's libraries from its wheels, so that ONNX Runtime finds them.

    Returns:
        The version of TensorRT that is loaded, "" if it is not found; ONNX Runtime then says what
        is missing.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = [] if spec is None else [Path(one) for one in spec.submodule_search_locations or ()]
    for name in _LIBRARIES:
        for folder in folders:
            try:
                ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
            except OSError as error:
                log.info("TensorRT: %s", error)
    try:
        # An integer: 101300 for 10.13.0 (NvInferRuntime.h).
        return str(ctypes.CDLL(_LIBRARIES[0]).getInferLibVersion())
    except (OSError, AttributeError):
        return ""
