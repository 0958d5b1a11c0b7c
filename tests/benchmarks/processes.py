"""Servers as child processes: their start, first response, CPU time, memory and end."""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from models import Model

PREDICT = "/neurona.v1.Prediction/Predict"
INFER = "/inference.GRPCInferenceService/ModelInfer"
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_NO_LIMIT = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True)
class Command:
    """The command that starts a server; `environment` is added to this process's."""

    words: Sequence[str | Path]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """A server that can be started.

    Attributes:
        name: Its name in the tables.
        methods: The methods to measure it with, PREDICT or INFER.
        command: Returns the command for a model, a new folder and an address.
    """

    name: str
    methods: tuple[str, ...]
    command: Callable[[Model, Path, str], Command]


class RunningServer:
    """A server process; `startup_seconds` is the time from its start to its first response."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.address = address
        self.startup_seconds = 0.0
        self._process = process

    def call(self, method: str, body: bytes, timeout: float = 60.0) -> bytes:
        """Returns the bytes of the response.

        Raises:
            grpc.RpcError: The call fails.
        """
        with grpc.insecure_channel(self.address, _NO_LIMIT) as channel:
            multicallable = channel.unary_unary(method)
            response: bytes = multicallable(body, timeout=timeout, wait_for_ready=True)
            return response

    def cpu_seconds(self) -> float:
        """Returns user and system time of all its processes since they started.

        Those that have ended count too, once their parent has waited for them.
        """
        return sum(sum(stat[11:15]) for stat in self._stats()) / _TICK

    def memory_bytes(self) -> int:
        """Returns the resident memory of all its processes."""
        return sum(stat[21] * _PAGE for stat in self._stats())

    def _stats(self) -> list[list[int]]:
        """Returns what `_stat` says of the server's process and all below it."""
        stats = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):  # it has exited
                    stats[int(entry.name)] = _stat(int(entry.name))
        tree = [self._process.pid]
        for parent in tree:  # grows during the loop: children of children
            tree.extend(process for process, stat in stats.items() if stat[1] == parent)
        return [stats[process] for process in tree if process in stats]


@contextlib.contextmanager
def running_server(server: Server, model: Model, timeout: float = 180) -> Iterator[RunningServer]:
    """Like `start_server`, in a temporary folder."""
    with (
        tempfile.TemporaryDirectory() as folder,
        start_server(server, model, Path(folder) / "server", timeout) as running,
    ):
        yield running


def _responds(running: RunningServer, method: str, body: bytes) -> bool:
    """Also returns False while it listens but has not loaded the model."""
    host, _, port = running.address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            pass
        running.call(method, body, timeout=10)
    except (OSError, grpc.RpcError):
        return False
    return True


def _stat(process: int) -> list[int]:
    """Returns /proc/PID/stat from the state on, which is field 3 in proc(5)."""
    text = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
    state, *numbers = text.split()
    return [ord(state), *map(int, numbers)]


@contextlib.contextmanager
def start_server(
    server: Server, model: Model, folder: Path, timeout: float = 180
) -> Iterator[RunningServer]:
    """Starts a server of `model`, yields it after its first response, and stops it.

    Args:
        server: The server.
        model: The model to serve.
        folder: A new folder for its files and its log.
        timeout: Seconds to wait for the first response.

    Raises:
        RuntimeError: It does not respond in time; the message has the end of its log.
    """
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = server.command(model, folder, address)
    log = folder / "log"
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command.words],
            env=os.environ | command.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        running = RunningServer(process, address)
        method = server.methods[0]
        body = request_bytes(model, method)
        while not _responds(running, method, body):
            if time.perf_counter() - start > timeout or process.poll() is not None:
                end = log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{server.name} does not respond; end of its log:\n{end}")
            time.sleep(0.02)
        running.startup_seconds = time.perf_counter() - start
        yield running
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def request_bytes(model: Model, method: str) -> bytes:
    request = model.predict_request() if method == PREDICT else model.infer_request()
    return request.SerializeToString()
