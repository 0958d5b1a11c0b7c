"""The demo, run once, and servers as processes of their own."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.server_process import ServerProcess

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The repository that the demo made, and the output of the demo.

    It trains for half a minute: the processes of one test run share it.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    repository, printed = folder / "demo" / "models", folder / "demo" / "printed.txt"
    with (folder / "demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            command = [sys.executable, ROOT / "deploy" / "demo.py", "--repository", repository]
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
            assert done.returncode == 0, done.stderr[-3000:]
            printed.write_text(done.stdout)
    return repository, printed.read_text()


@pytest.fixture
def serve():
    """Starts a server with a repository and flags, and waits until it serves."""
    yield from _start_servers()


@pytest.fixture(scope="module")
def serve_for_module():
    """Like `serve`, for a server that the tests of a file share."""
    yield from _start_servers()


@pytest.fixture
def start_server():
    """Like `serve`, but returns before the server serves."""
    yield from _start_servers(wait=False)


def _start_servers(*, wait=True):
    started = []

    def serve(repository, *flags, **options):
        server = ServerProcess(repository, *flags, **options).start()
        started.append(server)
        return server.wait_until_serving() if wait else server

    yield serve
    for server in started:
        server.close()
