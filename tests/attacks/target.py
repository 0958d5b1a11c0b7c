"""The server that a campaign attacks: its models, its process, its memory, and one victim of it.

Attacks and victim run in processes of their own, and get the target as JSON.
"""

import contextlib
import json
import os
import secrets
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
from onnx import TensorProto, helper
from support import onnx_models
from support.certificates import CertificateAuthority
from support.http2 import Connection
from support.server_process import NEURONA_SERVE, free_addresses

VICTIM_MODEL, ECHO, SEQUENCES, DIVISION, LOOP, SLOW = (
    *("victim", "echo", "sequences", "division", "loop", "slow"),
)


@dataclass(frozen=True)
class Target:
    """What an attacker knows of the server."""

    address: str
    metrics_address: str
    repository: str
    ca: str = ""
    """PEM file of the authority of the server's certificate; empty: no TLS."""
    token: str = ""
    """The bearer token of this caller; empty: none is needed, or the caller has none."""

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @property
    def metrics_port(self) -> int:
        return int(self.metrics_address.rpartition(":")[2])

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def metadata(self) -> list[tuple[str, str]]:
        return [("authorization", f"Bearer {self.token}")] if self.token else []

    def headers(self) -> dict[str, str]:
        return dict(self.metadata())

    def channel(self, number: int = 0) -> grpc.Channel:
        """Return a channel with a connection of its own."""
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("neurona.number", number),
        ]
        if not self.ca:
            return grpc.insecure_channel(self.address, options)
        credentials = grpc.ssl_channel_credentials(Path(self.ca).read_bytes())
        return grpc.secure_channel(self.address, credentials, options)

    def connection(self) -> Connection:
        """Return a connection for hand-made HTTP/2."""
        return Connection(self.port, tls=self.tls_context())

    def tls_context(self) -> ssl.SSLContext | None:
        if not self.ca:
            return None
        context = ssl.create_default_context(cafile=self.ca)
        context.set_alpn_protocols(["h2"])
        return context


def save_models(root: Path) -> None:
    """Save the models of the campaign: one for the victim, others that attackers may call."""
    onnx_models.save_classifier(root / VICTIM_MODEL / "1" / "model.onnx")
    onnx_models.save_echo(root / ECHO / "1" / "model.onnx", "BYTES")
    onnx_models.save_slow(root / SLOW / "1" / "model.onnx", products=3)
    onnx_models.save(
        root / DIVISION / "1" / "model.onnx",
        [helper.make_node("Div", ["a", "b"], ["y"])],
        {"a": (TensorProto.INT32, ["n"]), "b": (TensorProto.INT32, ["n"])},
        {"y": (TensorProto.INT32, ["n"])},
    )
    save_loop(root / LOOP / "1" / "model.onnx", "n")
    rows = np.random.default_rng(0).standard_normal
    onnx_models.save(
        root / SEQUENCES / "1" / "model.onnx",
        [
            helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
            helper.make_node("RNN", ["steps", "w", "r"], ["", "last"], hidden_size=16),
            helper.make_node("Squeeze", ["last", "first"], ["y"]),
        ],
        {"x": (TensorProto.FLOAT, ["batch", "time", 1])},
        {"y": (TensorProto.FLOAT, ["batch", 16])},
        {
            "w": rows((1, 16, 1)).astype(np.float32),
            "r": rows((1, 16, 16)).astype(np.float32) / 8,
            "first": np.array([0]),
        },
    )


def save_loop(path: Path, steps: str = "") -> Path:
    """Save a loop with as many steps as the input of that name says; without one it never ends."""
    scalar = helper.make_tensor_value_info("step", TensorProto.INT64, [])
    going = helper.make_tensor_value_info("going", TensorProto.BOOL, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["go_on"]),
            helper.make_node("Add", ["state", "state"], ["sum"]),
        ],
        "body",
        [scalar, going, helper.make_tensor_value_info("state", TensorProto.FLOAT, ["k"])],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["k"]),
        ],
    )
    nodes = [helper.make_node("Squeeze", [steps], ["count"])] if steps else []
    count = "count" if steps else ""
    nodes.append(helper.make_node("Loop", [count, "true", "x"], ["y"], body=body))
    inputs: dict[str, tuple[int, Sequence[int | str]]] = {"x": (TensorProto.FLOAT, ["k"])}
    if steps:
        inputs[steps] = (TensorProto.INT64, [1])
    outputs = {"y": (TensorProto.FLOAT, ["k"])}
    return onnx_models.save(path, nodes, inputs, outputs, {"true": np.array(True)})


class AttackedServer:
    """A neurona-serve with the campaign's models, whose standard error nobody reads."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        command: Path = NEURONA_SERVE,
        secure: bool = False,
        memory_bytes: int = 8 << 30,
    ) -> None:
        """Start the server and wait until it serves.

        Args:
            folder: Where its models, certificates and tokens are written.
            flags: Further flags of neurona-serve.
            command: The neurona-serve to start.
            secure: Whether it has TLS and tokens.
            memory_bytes: Limit of its address space (RLIMIT_AS): the machine must survive.
        """
        repository = folder / "models"
        save_models(repository)
        address, metrics_address = free_addresses(2)
        self.victim = Target(address, metrics_address, str(repository))
        self.attacker = self.stranger = self.victim
        arguments = [str(command), "--repository", str(repository), "--address", address]
        arguments += ["--metrics-address", metrics_address]
        arguments += ["--http-address", "off", *flags]
        if secure:
            arguments += self._secure(folder)
        # A pipe that is read until the server serves, and never again.
        reader, writer = os.pipe()
        self._process = subprocess.Popen(
            ["/usr/bin/prlimit", f"--as={memory_bytes}", "--", *arguments],
            stdout=writer,
            stderr=writer,
            env={**os.environ, "NEURONA_CACHE": str(folder / "cache")},
        )
        os.close(writer)
        self.pid = self._process.pid
        self.first_lines = b""
        os.set_blocking(reader, False)
        end = time.monotonic() + 120
        while self.healthz()[0] != "SERVING":
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server does not serve: {self._read(reader)}")
            self._read(reader)
            time.sleep(0.1)

    def _secure(self, folder: Path) -> list[str]:
        authority = CertificateAuthority(folder, "authority")
        certificate, key = authority.issue("server")
        tokens = {name: secrets.token_urlsafe(24) for name in ("victim", "attacker")}
        lines = [
            f'[[tokens]]\nname = "{name}"\nsha256 = "{sha256(token.encode()).hexdigest()}"\n'
            'rights = ["predict", "describe"]\n'
            for name, token in tokens.items()
        ]
        (folder / "tokens.toml").write_text("\n".join(lines))
        self.stranger = replace(self.victim, ca=str(authority.certificate))
        self.victim = replace(self.stranger, token=tokens["victim"])
        self.attacker = replace(self.stranger, token=tokens["attacker"])
        return [
            *("--tls-certificate", str(certificate), "--tls-key", str(key)),
            *("--tokens-file", str(folder / "tokens.toml")),
        ]

    def _read(self, reader: int) -> str:
        with contextlib.suppress(BlockingIOError):
            self.first_lines += os.read(reader, 1 << 16)
        return self.first_lines.decode(errors="replace")

    @property
    def exit_status(self) -> int | None:
        return self._process.poll()

    def healthz(self) -> tuple[str, float]:
        """Return what /healthz says ("" if nothing) and after how many seconds."""
        started = time.monotonic()
        try:
            with urllib.request.urlopen(
                f"http://{self.victim.metrics_address}/healthz", timeout=5
            ) as response:
                state = response.read().decode().strip()
        except OSError as error:
            state = f"{getattr(error, 'code', '')}"
        return state, time.monotonic() - started

    def memory_bytes(self) -> int:
        """Return the resident bytes of the process and its children, shared pages once each."""
        return sum(_memory(pid) for pid in _family(self.pid))

    def stop(self) -> float:
        """Send SIGTERM; return the seconds to the end, -1.0 if it had to be killed."""
        started = time.monotonic()
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            for pid in _family(self.pid):
                os.kill(pid, 9)
            self._process.wait()
            return -1.0
        return time.monotonic() - started


def _family(pid: int) -> list[int]:
    family = [pid]
    for parent in family:
        try:
            tasks = Path(f"/proc/{parent}/task").iterdir()
            family += [int(child) for t in tasks for child in (t / "children").read_text().split()]
        except OSError:
            continue
    return family


def _memory(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


class Watch:
    """Calls a function again and again, in a thread of its own, until it is closed."""

    def __init__(self, look: Callable[[], object], seconds: float = 0.25) -> None:
        self._look, self._seconds = look, seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds):
            self._look()


def victim_request() -> np.ndarray[Any, Any]:
    return np.random.default_rng().standard_normal((1, 4)).astype(np.float32)


def victim_response(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the right probabilities of the victim's model."""
    exponentials = np.exp(x @ onnx_models.WEIGHTS)
    return np.asarray(exponentials / exponentials.sum())
