"""A server inside a program: a notebook, a test, a script.

    with neurona_server.serve("model.onnx") as server:
        print(server.client.predict("model", rows))

The program's own logging, signals, event loop and garbage collector are left as they are. Options
come from the call alone, neither from the environment nor from a file.
"""

import atexit
import contextlib
import html
import logging
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from neurona_server.address import UNIX
from neurona_server.app import App
from neurona_server.config import sources
from neurona_server.config.options import Config
from neurona_server.errors import ConfigError, LoadError, quoted
from neurona_server.models.repository.unusable import MODEL_NAME

if TYPE_CHECKING:
    from neurona_client import Client

log = logging.getLogger(__name__)

# A library prints nothing by itself: without this, Python would print warnings of a program that
# has not set up logging.
logging.getLogger("neurona_server").addHandler(logging.NullHandler())

DEFAULTS: Mapping[str, object] = {
    "address": "127.0.0.1:0",
    "http_address": "127.0.0.1:0",
    "metrics_address": "off",
    "strict": True,  # a model that cannot be served is an exception
    # A program starts servers often and from files that it trusts: no second process that loads
    # each file first, and nothing in the home folder.
    "load_check": False,
    "cache": "off",
    "drain_timeout_ms": 5_000,
    "max_connections": 256,  # within the files that a process may usually open
}
"""Options whose defaults differ from those of the command neurona-serve."""

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104  for servers that listen on all

_UNSUPPORTED = ("log_format", "log_level", "processes", "supervise")


@runtime_checkable
class SerializableModel(Protocol):
    """A model in memory, as onnx.ModelProto."""

    def SerializeToString(self) -> bytes:  # noqa: N802  protobuf's name
        """Return the content of its file."""


ModelContent = bytes | SerializableModel
"""A model in memory: the content of its file, or onnx.ModelProto."""


class EmbeddedServer:
    """A server that runs in threads of this process, from its construction until `close`.

    A context manager closes it; so does the end of the program. Several may run at the same time.
    """

    def __init__(self, config: Config, folder: tempfile.TemporaryDirectory[str] | None) -> None:
        """Load the models and serve; `serve` is the way to get one.

        Args:
            config: The options.
            folder: Holds models that were in memory; removed by `close`.

        Raises:
            ConfigError: An option does not suit this machine, or an address is in use.
            LoadError: A model cannot be served.
        """
        self._folder = folder
        self._client: Client | None = None
        self._closed = False
        self._lock = threading.RLock()
        self._app = App(config)
        # So that threads never run into an interpreter that is about to end.
        atexit.register(self.close)
        try:
            self._app.start(owns_process=False)
        except BaseException:
            self.close()
            raise
        first = config.address.partition(",")[0]
        self.address = first if first.startswith(UNIX) else _reached(first, self._app.grpc_port)
        """Where it serves gRPC: HOST:PORT."""
        scheme = "https" if config.tls_certificate else "http"
        self.url = _url(scheme, config.http_address, self._app.http_port)
        """Where it serves HTTP, with the page to try the models; "" if http_address is "off"."""
        self.metrics_url = _url("http", config.metrics_address, self._app.metrics_port)
        """Where its status page is, "" unless metrics_address was given."""

    @property
    def models(self) -> list[tuple[str, int]]:
        """The names and versions that are served now."""
        return list(self._app.served_versions())

    @property
    def client(self) -> "Client":
        """A client of this server, made at the first use and closed with it.

        Raises:
            RuntimeError: The server is closed.
        """
        # The packages of the server and of the client do not need each other; who asks for this has
        # both, since one wheel holds them.
        from neurona_client import Client

        with self._lock:
            if self._closed:
                raise RuntimeError("server closed (expected one that runs)")
            if self._client is None:
                self._client = Client(self.address)
            return self._client

    def close(self) -> None:
        """Stop: calls in flight end first, for `drain_timeout_ms` at most. Again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            atexit.unregister(self.close)
            if self._client is not None:
                self._client.close()
            drained = self._app.stop()
            if not drained:
                log.warning("a run or the transport has not ended; its thread goes on")
            if self._folder is not None:
                self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"address={self.address!r} url={self.url!r}"
        return f"<{type(self).__name__} {state}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the models, and where they are."""
        if self._closed:
            return "<p>Neurona server: closed</p>"
        links = [f"gRPC {html.escape(self.address)}"]
        for url in filter(None, (self.url, self.metrics_url)):
            shown = html.escape(url)
            links.append(f'<a href="{shown}" target="_blank" rel="noopener">{shown}</a>')
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{version}</td></tr>"
            for name, version in self.models
        )
        return (
            f"<p>Neurona server: {' · '.join(links)}</p>"
            f"<table><tr><th>model</th><th>version</th></tr>{rows}</table>"
        )


def _reached(address: str, port: int) -> str:
    """Return where this machine reaches a port that listens at HOST:PORT."""
    host = address.rpartition(":")[0]
    return f"{_LOOPBACK.get(host, host)}:{port}"


def _url(scheme: str, address: str, port: int) -> str:
    return f"{scheme}://{_reached(address, port)}/" if port else ""


def serve(
    *models: str | os.PathLike[str] | ModelContent | Mapping[str, ModelContent], **options: object
) -> EmbeddedServer:
    """Serve models from within this program.

    Args:
        models: ONNX files, folders of models, models in memory (bytes or onnx.ModelProto, which get
            the name "model"), or mappings of names to models in memory.
        options: Options of neurona-serve by their names, as `max_batch_rows=8`. Unless they say
            otherwise, gRPC and HTTP are on free ports of loopback, there is no metrics port, and a
            model that cannot be served is an error.

    Returns:
        The running server; close it, or use it as a context manager.

    Raises:
        ConfigError: An option is invalid, or an address is in use.
        LoadError: A model cannot be served.
        TypeError: A model is none of these.
    """
    for name in _UNSUPPORTED:
        if name in options:
            raise ConfigError(f"option {name} is for the command neurona-serve alone")
    paths, contents = _sort(models)
    folder = tempfile.TemporaryDirectory(prefix="neurona-") if contents else None
    try:
        if folder is not None:
            for name, content in contents.items():
                path = Path(folder.name, f"{name}.onnx")
                path.write_bytes(content)
                paths.append(path)
        given = {"files": paths} if paths else {}
        config = sources.from_values({**DEFAULTS, **given, **options})
        if not (config.files or config.repository or config.model):
            raise LoadError("no model (expected an ONNX file, a folder, or a model in memory)")
        return EmbeddedServer(config, folder)
    except BaseException:
        if folder is not None:
            with contextlib.suppress(OSError):
                folder.cleanup()
        raise


def _sort(
    models: Sequence[str | os.PathLike[str] | ModelContent | Mapping[str, ModelContent]],
) -> tuple[list[Path], dict[str, bytes]]:
    """Return the models that are files or folders, and by their names those in memory."""
    paths: list[Path] = []
    contents: dict[str, bytes] = {}
    for model in models:
        if isinstance(model, str | os.PathLike):
            paths.append(Path(model))
        elif isinstance(model, Mapping):
            for name, content in model.items():
                if not MODEL_NAME.fullmatch(name):
                    raise ConfigError(
                        f"invalid model name {quoted(name)} (expected letters, digits and ._-)"
                    )
                if name in contents:
                    raise ConfigError(f"duplicate model name {quoted(name)}")
                contents[name] = _content(content)
        else:
            count = sum(name.startswith("model") for name in contents)
            contents[f"model-{count + 1}" if count else "model"] = _content(model)
    return paths, contents


def _content(model: object) -> bytes:
    """Return the content of the file of a model in memory."""
    if isinstance(model, bytes | bytearray | memoryview):
        return bytes(model)
    if isinstance(model, SerializableModel):
        return model.SerializeToString()
    raise TypeError(
        f"invalid model of type {type(model).__name__} (expected a path, bytes or onnx.ModelProto)"
    )
