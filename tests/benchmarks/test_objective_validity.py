"""The comparison of the simulator with the server."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from objective_validity import FIGURES, Figures, count_valid, differences, format_validity


def test_the_simulators_figures_are_compared_as_parts_of_the_measured_ones():
    measured = Figures(p50=0.01, p99=0.04, refused=0.3, goodput=1000.0)
    simulated = Figures(p50=0.0105, p99=0.05, refused=0.27, goodput=980.0)
    parts = differences(measured, simulated)
    assert [parts[name] for name in FIGURES] == pytest.approx([0.05, 0.25, -0.1, -0.02])
    assert count_valid([(measured, simulated), (measured, measured)]) == (7, 8)
    few = Figures(p50=0.01, p99=0.04, refused=0.001, goodput=1000.0)
    none = Figures(p50=0.01, p99=0.04, refused=0.0, goodput=1000.0)
    assert differences(few, none)["refused"] == pytest.approx(-0.001)
    assert differences(none, none)["refused"] == 0.0


def test_a_recorded_load_is_simulated_from_what_the_server_said_of_itself():
    levels = (0.01, 0.5, 0.99)
    costs = [
        {
            "rows": rows,
            "seconds": seconds,
            "quantiles": [
                {"level": level, "run_seconds": seconds, "cycle_seconds": seconds}
                for level in levels
            ],
        }
        for rows, seconds in ((1, 0.01), (8, 0.01))
    ]
    outcome = {"sent": 100, "refused": 0, "p50": 0.015, "p99": 0.02, "goodput": 100.0}
    point = {
        "workload": "lenet5",
        "promise": {"kind": "objective", "milliseconds": 100.0},
        "arrivals": "poisson",
        "load": 0.1,
        "rounds": [{"rate": 100.0, "seconds": 1.0, "seed": 1, "outcome": outcome}],
        "description": {
            "model": "lenet5",
            "batched": True,
            "batching": {"max_rows": 8, "instances": 1, "costs": costs},
        },
    }
    text = format_validity([json.loads(json.dumps(point))])
    (row,) = [line for line in text.splitlines() if line.startswith("| lenet5")]
    p50 = float(row.split("| ")[2].split(", ")[1].split(" ms")[0])
    # Alone a request takes 10 ms, one that comes during a run waits for its end, and for its own.
    assert 10.0 <= p50 < 20.0
    deadline = {**point, "promise": {"kind": "deadline", "milliseconds": 100.0}}
    assert "0 of 0 figures" in format_validity([deadline])
