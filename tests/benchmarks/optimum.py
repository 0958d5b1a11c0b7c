"""How far the rows that Neurona's batches take are from the optimum; prints Markdown.

    python tests/benchmarks/optimum.py [--models lenet5,lstm,resnet50] [--answer-us 30]

Runs of each model are measured in this process. For their times, with what the answers take, the
batching problem is solved as a semi-Markov decision process (`neurona_server.simulation.optimum`).
Then the same arrivals, a Poisson process, are served by the optimal policy, by batches of all that
waits, and by the server's own choice, which learns costs and utilisation as it does in the server.
The means are exact for the first two; the 99th percentiles, and all of the third, are simulated.
"""

import argparse
import time
from bisect import bisect_right
from pathlib import Path

import numpy as np
import onnxruntime
from measurements import environment_line
from models import Model, create_model
from numpy.typing import NDArray

from neurona_server.batching.batch_size_choice import BatchSizeChoice
from neurona_server.batching.cost_model import CostModel
from neurona_server.simulation.optimum import BatchingProcess, BatchService, simulate

LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SIZES = (1, 2, 4, 8, 16, 32, 64)
ROUNDS = 20
MAX_SECONDS = 60.0
"""Of the measurement of a model: slow ones have fewer rounds and smaller batches, beyond which runs
are proportional to their rows."""

QUEUE_ROWS = 512
WARM_UP = 0.2
"""Share of the arrivals before which the server's choice learns."""


def measure_runs(model: Model) -> dict[int, list[float]]:
    """Returns the seconds of runs by their rows, in rounds of all sizes."""
    session = onnxruntime.InferenceSession(model.file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    start = time.perf_counter()
    runs: dict[int, list[float]] = {}
    for number in range(ROUNDS + 1):
        for rows in SIZES:
            feeds = {name: model.batch(rows)}
            if number == 0:
                if time.perf_counter() - start > MAX_SECONDS / 10:
                    break
                session.run(None, feeds)  # prepares the shape
                runs[rows] = []
            elif rows in runs:
                session.run(None, {name: model.batch(1)})  # so that no size follows a larger one
                started = time.perf_counter()
                session.run(None, feeds)
                runs[rows].append(time.perf_counter() - started)
        if number > 3 and time.perf_counter() - start > MAX_SECONDS:
            break
    largest = max(runs)
    for rows in SIZES:
        runs.setdefault(rows, [one * rows / largest for one in runs[largest]])
    return runs


def service_of(runs: dict[int, list[float]], answer_seconds: float) -> BatchService:
    """Returns the service by quantiles of the runs, between the sizes interpolated."""
    levels = np.linspace(0.05, 0.95, 10)
    rows = np.arange(1, SIZES[-1] + 1)
    quantiles = np.array([np.quantile(runs[size], levels) for size in SIZES])
    cycles = np.array([np.interp(rows, SIZES, column) for column in quantiles.T]).T
    return BatchService(cycles + answer_seconds * rows[:, None], answer_seconds, QUEUE_ROWS)


class OwnQueue:
    """The rows that wait, as the server's choice asks for them."""

    rows = 0


def serve_as_server(service: BatchService, arrivals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the response of each row when the server's own choice decides."""
    now, queue = 0.0, OwnQueue()
    cost_model = CostModel(SIZES)
    answer = service.answer_seconds
    random = np.random.default_rng(1)

    def run(rows: int) -> float:
        return float(random.choice(service.cycles[rows - 1])) - answer * rows

    cost_model.measure(run, None)
    choice = BatchSizeChoice(cost_model, int, queue, lambda: now)
    times = arrivals.tolist()
    taken = arrived = 0
    ends, sizes = [], []
    while taken < len(times):
        arrived = bisect_right(times, now, arrived)
        if arrived == taken:
            now = times[arrived]
            continue
        queue.rows = arrived - taken
        rows = choice.choose(None, min(queue.rows, SIZES[-1]))
        started, seconds = now, run(rows)
        now += seconds + answer * rows
        cost_model.observe(rows, seconds, None, now)
        choice.observe_run(rows, seconds, None)
        choice.observe_batch(times[taken], started, now)
        ends.append(now)
        sizes.append(rows)
        taken += rows
    order = np.concatenate([np.arange(size, 0, -1) - 1 for size in sizes])
    answered: NDArray[np.float64] = np.repeat(ends, sizes) - answer * order - arrivals
    return answered


def print_model(model: Model, answer_seconds: float, count: int) -> None:
    """Prints the runs of a model, and the table of its loads."""
    runs = measure_runs(model)
    service = service_of(runs, answer_seconds)
    medians = ", ".join(f"{size}: {1000 * np.median(runs[size]):.2f}" for size in SIZES)
    print(f"\n### {model.name}: at most {service.capacity:.0f} rows per second\n")
    print(f"Milliseconds of a run by its rows: {medians}.\n")
    print("| load | optimal mean | p99 | all that waits: mean | p99 | Neurona: mean | p99 |")
    print("|---|---|---|---|---|---|---|")
    for load in LOADS:
        rate = load * service.capacity
        process = BatchingProcess(service, rate)
        best = process.solve()
        eager = process.evaluate(lambda waiting: min(waiting, SIZES[-1]))
        arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / rate, count))
        table = best.rows.tolist()
        steady = int(WARM_UP * count)
        optimal = simulate(service, lambda n, table=table: table[min(n, QUEUE_ROWS)], arrivals)
        optimal = optimal[steady:]
        greedy = simulate(service, lambda n: min(n, SIZES[-1]), arrivals)[steady:]
        own = serve_as_server(service, arrivals)[steady:]
        p99 = float(np.quantile(optimal, 0.99))
        print(
            f"| {load} | {1000 * best.response:.3f} ms | {1000 * p99:.3f} ms "
            f"| {eager.response / best.response:.3f} | {np.quantile(greedy, 0.99) / p99:.3f} "
            f"| {own.mean() / optimal.mean():.3f} | {np.quantile(own, 0.99) / p99:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default="lenet5,lstm,resnet50", help="names in models.py")
    parser.add_argument("--answer-us", type=float, default=30.0, help="microseconds of an answer")
    parser.add_argument("--arrivals", type=int, default=200_000, help="rows of each simulation")
    parser.add_argument("--folder", type=Path, default=Path("bench/models"), help="ONNX files")
    arguments = parser.parse_args()
    print(f"## Distance from the optimum\n\n{environment_line()}")
    print(
        "\nMean and 99th percentile of the response; of two policies as ratios to the optimal one."
    )
    for name in arguments.models.split(","):
        model = create_model(name, arguments.folder)
        print_model(model, arguments.answer_us / 1e6, arguments.arrivals)


if __name__ == "__main__":
    main()
