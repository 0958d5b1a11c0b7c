"""The demo, run once, and neurona-serve as a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.served import Served

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The demo from an empty repository to the end: the repository, and what it printed."""
    repository = tmp_path_factory.mktemp("demo") / "models"
    command = [sys.executable, ROOT / "deploy" / "demo.py", "--repository", repository]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return repository, done.stdout


@pytest.fixture
def serve():
    yield from _serving()


@pytest.fixture(scope="module")
def serve_for_all():
    """As `serve`, for a server that the tests of a file share."""
    yield from _serving()


@pytest.fixture
def begin_serving():
    """As `serve`, for a test that sees the server start."""
    yield from _serving(wait=False)


def _serving(*, wait=True):
    started = []

    def serve(repository, *flags, **options):
        started.append(Served(repository, *flags, **options))
        return started[-1].wait_until_serving() if wait else started[-1]

    yield serve
    for one in started:
        one.close()
