"""A server as a process of its own: started, asked for the first time, looked at, stopped."""

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
    """What starts a server; `environment` is added to our own."""

    words: Sequence[str | Path]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """name: as in the tables.  methods: those it is asked by, PREDICT or INFER, best first.

    command: from a model, an empty folder and an address to what serves the one at the other.
    """

    name: str
    methods: tuple[str, ...]
    command: Callable[[Model, Path, str], Command]


class RunningBatch:
    """One that has answered.  seconds_to_answer: from its start to its first answer."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.address = address
        self.seconds_to_answer = 0.0
        self._process = process

    def ask(self, method: str, body: bytes, timeout: float = 60.0) -> bytes:
        """The bytes of the answer. Raises grpc.RpcError."""
        with grpc.insecure_channel(self.address, _NO_LIMIT) as channel:
            answer: bytes = channel.unary_unary(method)(body, timeout=timeout, wait_for_ready=True)
            return answer

    def cpu_seconds(self) -> float:
        """Of user and kernel, by all its processes and threads, since they started."""
        return sum(sum(_stat(process)[11:13]) for process in self._processes()) / _TICK

    def memory_bytes(self) -> int:
        """Resident, of all its processes."""
        return sum(_stat(process)[21] * _PAGE for process in self._processes())

    def _processes(self) -> list[int]:
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):  # ended meanwhile
                    parents[int(entry.name)] = _stat(int(entry.name))[1]
        family = [self._process.pid]
        for parent in family:  # grows on the way: children of children
            family.extend(process for process, its in parents.items() if its == parent)
        return family


@contextlib.contextmanager
def alone(server: Server, model: Model, patience: float = 180) -> Iterator[RunningBatch]:
    """As `started`, in a folder that is gone afterwards."""
    with (
        tempfile.TemporaryDirectory() as folder,
        started(server, model, Path(folder) / "server", patience) as running,
    ):
        yield running


def _answers(running: RunningBatch, method: str, body: bytes) -> bool:
    """False too while it listens and has yet to load the model."""
    host, _, port = running.address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=1):
            pass
        running.ask(method, body, timeout=10)
    except (OSError, grpc.RpcError):
        return False
    return True


def _stat(process: int) -> list[int]:
    """What follows the name in /proc/PID/stat; proc(5) counts from 1 and has two before it."""
    text = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
    state, *numbers = text.split()
    return [ord(state), *map(int, numbers)]


@contextlib.contextmanager
def started(
    server: Server, model: Model, folder: Path, patience: float = 180
) -> Iterator[RunningBatch]:
    """A server of `model` that has answered once; ended, with all its children, afterwards.

    folder: a new one, for its files and its log. Raises RuntimeError, with the end of that
    log, if it gives no answer within `patience` seconds.
    """
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = server.command(model, folder, address)
    log = folder / "log"
    with log.open("wb") as output:
        begun = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command.words],
            env=os.environ | command.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        running = RunningBatch(process, address)
        method = server.methods[0]
        body = request_bytes(model, method)
        while not _answers(running, method, body):
            if time.perf_counter() - begun > patience or process.poll() is not None:
                end = log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{server.name} gives no answer; its log ends:\n{end}")
            time.sleep(0.02)
        running.seconds_to_answer = time.perf_counter() - begun
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
