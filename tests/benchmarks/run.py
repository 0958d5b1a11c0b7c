"""Compares servers in one run on one machine; prints Markdown and writes it with a plot.

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
from measurements import ModelMeasurements, environment_line, measure
from models import FACTORIES, create_model
from plot import draw
from processes import Server, running_server
from servers import INSTALLED_SERVERS, NEURONA, OTHER_SERVERS
from table import document

ROOT = Path(__file__).parents[2]
PARTS = ("table", "stream", "growth")
CALLERS = 64


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # stops the servers too
    if shutil.which("h2load") is None:
        sys.exit("h2load is not installed (Debian: apt-get install nghttp2-client)")
    folder, quick, rounds = arguments.folder, arguments.quick, arguments.rounds
    environment = environment_line()
    models = [create_model(name, folder / "models") for name in arguments.models]
    small = create_model("mlp", folder / "models")
    seconds = arguments.seconds
    measurements: list[ModelMeasurements] = []
    growths: list[growth.Growth] = []
    streaming_rates = None
    if "table" in arguments.parts:
        servers = [INSTALLED_SERVERS[name] for name in arguments.servers] + _install(
            arguments.against, folder
        )
        measurements = measure(models, servers, rounds, seconds, arguments.loads)
        _save(folder, environment, measurements)  # the rest takes minutes and may be interrupted
    if "stream" in arguments.parts:
        with running_server(NEURONA, small) as running:
            target = (running.address, small.name, small.predict_request())
            streaming_rates = streaming.compare(*target, CALLERS, 2 * seconds, rounds)
    if "growth" in arguments.parts:
        loads = (1, 64) if quick else growth.IN_FLIGHT
        numbers = (1, 3) if quick else growth.MODELS
        sizes = (64, 1 << 20) if quick else growth.BYTES
        growths = [
            growth.with_load(small, seconds, loads),
            growth.with_models(small, numbers),
            growth.with_bytes(8, seconds, sizes),
        ]
    print(_save(folder, environment, measurements, growths, streaming_rates))
    print(f"Written with a plot: {folder / 'results.md'}, {folder / 'results.png'}")


def _save(
    folder: Path,
    environment: str,
    measurements: list[ModelMeasurements],
    growths: Sequence[growth.Growth] = (),
    streaming_rates: streaming.StreamingRates | None = None,
) -> str:
    """Writes the text and the plot into `folder`, and returns the text."""
    text = document(environment, measurements, growths, streaming_rates)
    (folder / "results.md").write_text(text)
    draw(measurements, growths, folder / "results.png")
    return text


def _install(names: list[str], folder: Path) -> list[Server]:
    """Installs other servers; prints an error for those that cannot be installed."""
    servers = []
    for name in names:
        try:
            servers.append(OTHER_SERVERS[name](folder))
        except Exception as error:  # pip, the network, the disk: the rest is worth measuring
            print(f"{name} is left out, it cannot be installed: {error}", file=sys.stderr)
    return servers


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=_some_of(FACTORIES), default=list(FACTORIES))
    parser.add_argument(
        "--servers", type=_some_of(INSTALLED_SERVERS), default=list(INSTALLED_SERVERS)
    )
    parser.add_argument(
        "--against", type=_some_of(OTHER_SERVERS), default=[], help="mlserver, triton"
    )
    parser.add_argument("--parts", type=_some_of(PARTS), default=list(PARTS))
    parser.add_argument("--loads", type=_numbers, default=[], help="in flight, such as 1,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="seconds of each measurement")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "bench", help="for models and results"
    )
    parser.add_argument("--quick", action="store_true", help="only the MLP, one load, one round")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.models, arguments.loads, arguments.rounds = ["mlp"], [64], 1
        arguments.seconds = 0.3
    return arguments


def _some_of(choices):
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := sorted(set(names) - set(choices)):
            raise argparse.ArgumentTypeError(
                f"unknown {', '.join(unknown)} (expected some of {', '.join(choices)})"
            )
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return sorted({int(word) for word in text.split(",")})


if __name__ == "__main__":
    main()
