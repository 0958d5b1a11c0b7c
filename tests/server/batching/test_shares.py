"""Models on one device in virtual time: those that keep to their shares keep their objectives."""

from random import Random

import pytest

from neurona_server.batching.device_scheduler import DeviceScheduler
from neurona_server.batching.policy import BatchPolicy
from neurona_server.simulation.arrivals import poisson
from neurona_server.simulation.costs import BatchCosts
from neurona_server.simulation.kernel import Kernel
from neurona_server.simulation.model import SimulatedModel

BASE, ROW, FULL = 0.001, 0.0002, 64
OBJECTIVE = 0.05
WARM_UP = 2.0


def simulate(count, seconds, *, pressed=1, objective=OBJECTIVE, base=BASE):
    """Press some models at 5 times their share, the others at 0.8 of it; return all of them."""
    with Kernel() as kernel:
        scheduler = DeviceScheduler(1, new_condition=kernel.new_condition)
        sizes, start, models = [1, 2, 4, 8, 16, 32, FULL], kernel.now, []
        for number in range(count):
            is_pressed = number < pressed
            cost = base if is_pressed else BASE
            model = SimulatedModel(
                kernel,
                BatchPolicy(inline=False, latency_objective=None if is_pressed else objective),
                BatchCosts.linear(cost, ROW, sizes, spread=0.1),
                Random(number),  # noqa: S311
                scheduler=scheduler,
                measured=(start + WARM_UP, start + WARM_UP + seconds),
            )
            model.start()
            models.append(model)
            rows = 32 if is_pressed else 1
            capacity = FULL / (cost + ROW * FULL) / rows if is_pressed else 1 / (BASE + ROW)
            rate = (5.0 if is_pressed else 0.8) * capacity / count
            _arrive(kernel, model, poisson(rate, Random(1000 + number)), start, rows)  # noqa: S311
        kernel.run(until=start + WARM_UP + seconds)
        return models


def _arrive(kernel, model, times, start, rows):
    def arrive():
        model.submit(rows=rows)
        kernel.at(start + next(times), arrive)

    kernel.at(start + next(times), arrive)


@pytest.mark.parametrize(
    ("count", "pressed"), [(2, 1), (10, 5), pytest.param(100, 1, marks=pytest.mark.slow)]
)
def test_a_model_within_its_share_keeps_its_objective(count, pressed):
    models = simulate(count, 1.5, pressed=pressed)
    modest = [one.outcomes for one in models[pressed:]]
    assert sum(one.refused + one.dropped for one in modest) == 0
    assert max(latency for one in modest for latency in one.latencies) < OBJECTIVE
    # What the modest ones leave is used: the device is never idle while others wait.
    if pressed * 5 > count:
        assert sum(one.outcomes.busy for one in models) / 1.5 > 0.97


def test_without_an_objective_runs_are_as_large_as_they_can_be():
    models = simulate(2, 1.0, objective=None, base=0.02)
    pressed = models[0].outcomes
    assert pressed.batch_rows / pressed.batches > 0.9 * FULL
    limited = simulate(2, 1.0, base=0.02)[0].outcomes
    assert limited.batch_rows / limited.batches < 0.5 * FULL
