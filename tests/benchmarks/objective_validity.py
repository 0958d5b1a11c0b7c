"""What `neurona-simulate` says of the loads that objectives.py has measured: is it true?

    python tests/benchmarks/objective_validity.py [--folder bench]

reads objectives.json and prints Markdown. The simulation gets what the server itself said of its
costs (Models.Describe, after the load), and the very times at which requests came. It has the last
round of each load of one model; the machine's stalls and what the load's process took of the same
cores are not in it.
"""

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from objective_server import WARM_UP_SECONDS
from objectives import OBJECTIVE, ROOT, arrival_times
from open_loop import Array
from table import grid

from neurona_server.simulation.experiment import simulate
from neurona_server.simulation.scenario import Scenario, described_model

ALLOWED_DIFFERENCE = 0.1
FEW_REFUSALS = 0.01
"""Shares of refused requests below this are compared by their difference, not by their ratio."""
FIGURES = ("p50", "p99", "refused", "goodput")


@dataclass(frozen=True)
class Figures:
    """What callers met, in the measurement or in the simulation.

    Attributes:
        p50: Seconds from sending to the answer, NaN without any.
        p99: The same.
        refused: Share of all requests.
        goodput: Answers in time per second.
    """

    p50: float
    p99: float
    refused: float
    goodput: float

    @classmethod
    def of(cls, outcome: dict[str, Any]) -> "Figures":
        """Returns those of an Outcome in objectives.json."""
        refused = outcome["refused"] / outcome["sent"]
        return cls(outcome["p50"], outcome["p99"], refused, outcome["goodput"])


def simulate_load(
    description: dict[str, Any], objective: float, times: Array, warm_up: float, seconds: float
) -> Figures:
    """Returns what the simulation says of a load of one model.

    Args:
        description: The DescribeModelResponse, names as in prediction.proto.
        objective: The latency objective in seconds.
        times: Seconds from the start at which requests come.
        warm_up: How many of these are not counted.
        seconds: That are counted, after the warm-up.
    """
    scenario = Scenario(models=(described_model(description),)).with_objective(objective)
    sent = {description["model"]: times.tolist()}
    (model,) = simulate(scenario, seconds, warm_up=warm_up, times=sent).models
    return Figures(model.p50_ms / 1000, model.p99_ms / 1000, model.refused, model.goodput)


def differences(measured: Figures, simulated: Figures) -> dict[str, float]:
    """Returns by how much each figure differs, as a part of the measured one."""
    parts = {}
    for name in FIGURES:
        real, virtual = getattr(measured, name), getattr(simulated, name)
        if name == "refused" and real < FEW_REFUSALS:
            parts[name] = virtual - real
        elif math.isnan(real) or not real:
            parts[name] = 0.0 if virtual == real or math.isnan(virtual) else math.inf
        else:
            parts[name] = virtual / real - 1
    return parts


def count_valid(pairs: Iterable[tuple[Figures, Figures]]) -> tuple[int, int]:
    """Returns how many figures differ by no more than ALLOWED_DIFFERENCE, and of how many."""
    parts = [part for pair in pairs for part in differences(*pair).values()]
    return sum(abs(part) <= ALLOWED_DIFFERENCE for part in parts), len(parts)


def validity_cells(measured: Figures, simulated: Figures) -> Sequence[str]:
    """Returns a cell for each of FIGURES: measured, simulated, and the difference."""
    parts = differences(measured, simulated)
    formats = {"p50": _ms, "p99": _ms, "refused": _percent, "goodput": _rate}
    return [
        f"{formats[name](getattr(measured, name))}, {formats[name](getattr(simulated, name))} "
        f"({_difference(parts[name])})"
        for name in FIGURES
    ]


def _difference(part: float) -> str:
    return "of nothing" if math.isinf(part) else f"{100 * part:+.0f} %"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}"


def simulate_point(point: dict[str, Any]) -> tuple[Figures, Figures]:
    """Returns the measured and the simulated figures of a Point in objectives.json."""
    last = point["rounds"][-1]
    seconds = last["seconds"]
    times = arrival_times(point["arrivals"], last["rate"], seconds, last["seed"])
    objective = point["promise"]["milliseconds"] / 1000
    simulated = simulate_load(point["description"], objective, times, WARM_UP_SECONDS, seconds)
    return Figures.of(last["outcome"]), simulated


def format_validity(points: Sequence[dict[str, Any]]) -> str:
    """Returns Markdown on the points under an objective whose server has one model."""
    pairs, rows = [], []
    for point in points:
        promise, arrivals, load = (point[name] for name in ("promise", "arrivals", "load"))
        if promise["kind"] != OBJECTIVE or point["workload"] == "small":
            continue
        pairs.append(simulate_point(point))
        name = f"{point['workload']}, {promise['milliseconds']:g} ms, {arrivals}, {load:g}"
        rows.append([name, *validity_cells(*pairs[-1])])
    valid, total = count_valid(pairs)
    allowed = f"{ALLOWED_DIFFERENCE:.0%}"
    title = f"Measured, simulated: {valid} of {total} figures differ by {allowed} or less."
    return f"# The simulator beside the server\n\n{title}\n\n{grid(('load', *FIGURES), rows)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "bench", help="of objectives.json")
    folder = parser.parse_args().folder
    text = format_validity(json.loads((folder / "objectives.json").read_text())["points"])
    (folder / "objective_validity.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
