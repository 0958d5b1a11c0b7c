import numpy as np
import pytest
from support.fakes import Puppet, PuppetBatcher, SubmittedRequest

from neurona_server.batching.cost_distribution import (
    BatchTimes,
    CostDistribution,
    DecayingHistogram,
)
from neurona_server.batching.cost_model import CostModel
from neurona_server.batching.policy import BatchPolicy
from neurona_server.batching.watchdog import Stalls


def test_quantiles_of_a_histogram_are_those_of_its_values_to_a_bin():
    histogram = DecayingHistogram(memory=1e9)
    values = np.random.default_rng(1).lognormal(-4, 0.5, 2000)
    for value in values:
        histogram.add(value)
    assert histogram.mean == pytest.approx(values.mean())
    for level in (0.01, 0.5, 0.99):
        assert histogram.quantile(level) == pytest.approx(np.quantile(values, level), rel=0.045)


def test_a_histogram_forgets_and_its_weights_stay_finite():
    histogram = DecayingHistogram(memory=5)
    for value in [1.0] * 2000 + [3.0] * 50:
        histogram.add(value)
    assert histogram.mean == pytest.approx(3.0, rel=0.001)
    assert histogram.quantile(0.01) == pytest.approx(3.0, rel=0.045)
    assert histogram.count == pytest.approx(5.5, rel=0.02)


def times(cycle):
    return BatchTimes(cycle / 4, cycle / 2, cycle / 4, cycle)


@pytest.fixture
def distribution():
    cost_model = CostModel(BatchPolicy(max_rows=8).batch_sizes)
    cost_model.measure(lambda rows: 1.0 + rows, ("a",), budget=1e9)
    for now in range(4):
        cost_model.observe(8, 18.0, ("b",), now)  # twice as slow
    return CostDistribution(cost_model)


def test_a_batch_between_sizes_and_one_of_another_group_is_scaled_as_the_cost_model_predicts(
    distribution,
):
    for _ in range(100):
        distribution.observe(6, ("b",), times(28.0))  # 14 of the measured group, 18 for 8 rows
    found = distribution.quantile(8, 0.5, ("a",))
    assert found == pytest.approx(times(18.0), rel=0.045)
    assert distribution.quantile(3, 0.5, ("b",)) == pytest.approx(times(16.0), rel=0.045)


def test_only_levels_are_described_that_enough_batches_are_known_for(distribution):
    assert distribution.quantiles(8) == []
    distribution.observe(8, ("a",), times(9.0))
    assert [level for level, _ in distribution.quantiles(8)] == [0.5]
    for _ in range(10):
        distribution.observe(8, ("a",), times(9.0))
    assert [level for level, _ in distribution.quantiles(8)] == [
        0.05,
        0.1,
        0.25,
        0.5,
        0.75,
        0.9,
        0.95,
    ]


def test_a_batcher_observes_the_phases_of_its_batches_but_not_of_halves():
    batcher = PuppetBatcher(BatchPolicy(max_rows=8))

    def pass_time(inputs):
        batcher.clock.now += 2.0
        if len(inputs["x"]) == 5 or fails:
            raise RuntimeError

    fails = False
    puppet = Puppet(before=pass_time)
    SubmittedRequest(batcher, [1] * 4)
    batcher.step(puppet)
    found = batcher.cost_distribution.quantile(4, 0.5)
    assert found.run == found.cycle == pytest.approx(2.0, rel=0.045)
    assert found.join == found.answer < 1e-8
    for rows in (2, 3):
        SubmittedRequest(batcher, [1] * rows)
    batcher.step(puppet)  # fails, and runs as two halves
    assert [level for level, _ in batcher.cost_distribution.quantiles(4)] == [0.5]
    assert batcher.cost_distribution.quantiles(8) == []


def test_the_rate_of_stalls_is_by_the_time_that_was_watched():
    stalls = Stalls()
    assert stalls.rates() == []
    for late in (0.0001, 0.0001, 0.0015, 0.03):
        stalls.observe(0.25, late)
    assert dict(stalls.rates()) == pytest.approx(
        {0.0005: 2.0, 0.001: 2.0, 0.002: 1.0, 0.005: 1.0, 0.01: 1.0, 0.02: 1.0}, rel=0.01
    )
