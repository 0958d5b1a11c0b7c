"""Servers side by side, in one run on one machine: prints Markdown, and leaves it with a plot.

python tests/benchmarks/run.py                              # a quarter of an hour
python tests/benchmarks/run.py --against mlserver,triton    # installs them first
python tests/benchmarks/run.py --models mlp --loads 64 --servers neurona,aio --parts table
"""

import argparse
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import growth
import streaming
from measures import Measured, measure, surroundings
from models import MAKERS, make
from plot import draw
from processes import Server, alone
from servers import NEURONA, OWN, RIVALS
from table import document

ROOT = Path(__file__).parents[2]
PARTS = ("table", "stream", "growth")
CALLERS = 64


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and so are the servers
    if shutil.which("h2load") is None:
        sys.exit("h2load is not there; on Debian: apt-get install nghttp2-client")
    folder, quick, rounds = arguments.folder, arguments.quick, arguments.rounds
    about = surroundings()
    models = [make(name, folder / "models") for name in arguments.models]
    small = make("mlp", folder / "models")
    seconds = arguments.seconds
    measured: list[Measured] = []
    growths: list[growth.Growth] = []
    streamed = None
    if "table" in arguments.parts:
        servers = [OWN[name] for name in arguments.servers] + _rivals(arguments.against, folder)
        measured = measure(models, servers, rounds, seconds, arguments.loads)
        _save(folder, about, measured)  # the rest takes minutes, and may be ended
    if "stream" in arguments.parts:
        with alone(NEURONA, small) as running:
            asking = (running.address, small.name, small.predict_request())
            streamed = streaming.compare(*asking, CALLERS, 2 * seconds, rounds)
    if "growth" in arguments.parts:
        loads = (1, 64) if quick else growth.IN_FLIGHT
        numbers = (1, 3) if quick else growth.MODELS
        sizes = (64, 1 << 20) if quick else growth.BYTES
        growths = [
            growth.with_load(small, seconds, loads),
            growth.with_models(small, numbers),
            growth.with_bytes(8, seconds, sizes),
        ]
    print(_save(folder, about, measured, growths, streamed))
    print(f"The same with a plot: {folder / 'measured.md'}, {folder / 'measured.png'}")


def _save(
    folder: Path,
    about: str,
    measured: list[Measured],
    growths: Sequence[growth.Growth] = (),
    streamed: streaming.Streamed | None = None,
) -> str:
    """The text; it and the plot are left in `folder`."""
    text = document(about, measured, growths, streamed)
    (folder / "measured.md").write_text(text)
    draw(measured, growths, folder / "measured.png")
    return text


def _rivals(names: list[str], folder: Path) -> list[Server]:
    """Those that can be installed here; of the others it says why not, and goes on."""
    servers = []
    for name in names:
        try:
            servers.append(RIVALS[name](folder))
        except Exception as error:  # pip, the network, the disk: the rest is worth measuring
            print(f"{name} is left out, it cannot be installed: {error}", file=sys.stderr)
    return servers


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=_some_of(MAKERS), default=list(MAKERS))
    parser.add_argument("--servers", type=_some_of(OWN), default=list(OWN))
    parser.add_argument("--against", type=_some_of(RIVALS), default=[], help="mlserver, triton")
    parser.add_argument("--parts", type=_some_of(PARTS), default=list(PARTS))
    parser.add_argument("--loads", type=_numbers, default=[], help="in flight, like 1,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--folder", type=Path, default=ROOT / "bench", help="for all that is made")
    parser.add_argument(
        "--quick", action="store_true", help="the MLP, one load, one round: that it runs"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.loads, arguments.rounds = ["mlp"], [64], 1
        arguments.seconds = 0.3
    return arguments


def _some_of(known):
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := sorted(set(names) - set(known)):
            raise argparse.ArgumentTypeError(
                f"{', '.join(unknown)}: expected some of {', '.join(known)}"
            )
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return sorted({int(word) for word in text.split(",")})


if __name__ == "__main__":
    main()
