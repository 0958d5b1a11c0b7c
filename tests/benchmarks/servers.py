"""The servers that are compared, and how each is given its one model."""

import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlserver_rival
import triton_rival
from models import Model
from processes import INFER, PREDICT, Command, Server

HERE = Path(__file__).parent
YARDSTICK = "grpc.aio"
_NEURONA = Path(sys.executable).parent / "neurona-serve"


def put(model: Model, repository: Path, name: str = "") -> None:
    """Into a repository, as <name>/1/model.onnx."""
    path = repository / (name or model.name) / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    shutil.copyfile(model.file, path)  # a link out of the repository is not followed


def neurona_command(repository: Path, address: str, *flags: str) -> Command:
    """Nothing is kept from start to start, so that each is measured like the first."""
    words = [_NEURONA, "--repository", repository, "--address", address, "--cache", "off"]
    return Command([*words, "--metrics-address", "127.0.0.1:0", "--log-level", "error", *flags])


def _neurona(transport: str, model: Model, folder: Path, address: str) -> Command:
    put(model, folder / "models")
    return neurona_command(folder / "models", address, "--transport", transport)


def _aio(model: Model, _: Path, address: str) -> Command:
    return Command([sys.executable, HERE / "aio_server.py", model.file, address])


NEURONA = Server("neurona", (PREDICT, INFER), partial(_neurona, "cygrpc"))
NEURONA_AIO = Server("neurona, aio transport", (PREDICT, INFER), partial(_neurona, "aio"))
AIO = Server(YARDSTICK, (PREDICT,), _aio)

OWN = {"neurona": NEURONA, "neurona-aio": NEURONA_AIO, "aio": AIO}
"""What needs nothing but what the tests need, by the word a person types."""

RIVALS: dict[str, Callable[[Path], Server]] = {
    "mlserver": mlserver_rival.install,
    "triton": triton_rival.install,
}
"""What is installed first, into a virtual environment of its own in a folder."""
