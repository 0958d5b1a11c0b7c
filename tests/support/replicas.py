"""neurona-serve as processes of their own, killed and started again."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

SERVE = Path(sys.executable).parent / "neurona-serve"


class Replica:
    """At an address that stays the same. Its log goes to a file beside the others."""

    def __init__(self, repository: Path, folder: Path, *flags: object) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._log = folder / f"{port}.log"
        self._command = [
            *(SERVE, "--repository", repository, "--address", self.address),
            *("--metrics-address", "127.0.0.1:0", "--log-level", "warning", *flags),
        ]
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            command = [str(word) for word in self._command]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """As a supervisor does; the exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)

    @property
    def up(self) -> bool:
        return self._process.poll() is None

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")
