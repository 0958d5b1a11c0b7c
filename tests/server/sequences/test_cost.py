"""The cost of a run by its rows and steps: measured at two lengths, corrected by every run."""

import numpy as np
import pytest

from neurona_server.sequences.cost import SequenceCostModel
from neurona_server.sequences.ragged import LengthGroup

BASE, OTHER = ((3,),), ((5,),)
SIZES = (1, 2, 4, 8, 16, 32)


def seconds(rows, steps, factor=1.0):
    return factor * (60e-6 + steps * (5e-6 + 0.5e-6 * rows))


def group(steps, base=BASE):
    return LengthGroup(base, steps)


@pytest.fixture
def measured():
    model = SequenceCostModel(SIZES)
    model.measure(lambda rows: seconds(rows, 8), group(8))
    model.measure_steps(seconds, (8, 64))
    return model


@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (1, 8), (3, 20), (32, 64), (32, 400), (20, 1)])
def test_two_lengths_predict_all_others(measured, rows, steps):
    assert measured.predict(rows, group(steps)) == pytest.approx(seconds(rows, steps))


def test_nothing_is_predicted_before_a_measurement():
    model = SequenceCostModel(SIZES)
    assert model.predict(4, group(10)) == 0.0
    assert model.seconds == {}
    assert not model.is_reliable(group(10), 0.0)


def test_runs_teach_a_model_that_was_never_measured():
    model = SequenceCostModel(SIZES)
    random = np.random.default_rng(1)
    for now in range(2000):
        rows, steps = int(random.integers(1, 33)), int(random.integers(5, 200))
        model.observe(rows, seconds(rows, steps), group(steps), float(now))
    for rows, steps in [(1, 50), (8, 100), (32, 20), (32, 150)]:
        assert model.predict(rows, group(steps)) == pytest.approx(seconds(rows, steps), rel=0.15)


def test_a_slower_machine_is_noticed_for_lengths_that_did_not_run(measured):
    for now in range(60):
        measured.observe(8, seconds(8, 40, 2.0), group(40), float(now))
    for steps in (8, 40, 300):
        assert measured.predict(8, group(steps)) == pytest.approx(seconds(8, steps, 2.0), rel=0.2)


def test_one_slow_run_changes_little(measured):
    measured.observe(8, 5.0, group(40), 0.0)
    assert measured.predict(8, group(40)) < 1.3 * seconds(8, 40)


def test_the_seconds_of_batch_sizes_are_those_of_typical_steps(measured):
    for now in range(300):
        measured.observe(4, seconds(4, 100), group(100), float(now))
    assert measured.seconds[4] == pytest.approx(seconds(4, 100), rel=0.05)
    assert measured.predict(4) == pytest.approx(measured.seconds[4])
    assert [*measured.seconds] == [*SIZES]


def test_other_sizes_have_a_factor_of_their_own(measured):
    for now in range(60):
        measured.observe(8, seconds(8, 20, 3.0), group(20, OTHER), float(now))
    assert measured.predict(8, group(20, OTHER)) == pytest.approx(seconds(8, 20, 3.0), rel=0.1)
    assert measured.predict(8, group(20)) == pytest.approx(seconds(8, 20))


def test_only_runs_that_were_measured_count_as_measured(measured):
    assert measured.predict_measured(32, group(64)) == pytest.approx(seconds(32, 64))
    assert measured.predict_measured(33, group(64)) is None
    assert measured.predict_measured(1, group(65)) is None
    assert measured.predict_measured(1, group(8, OTHER)) is None
    measured.observe(4, seconds(4, 200), group(200), 0.0)
    assert measured.predict_measured(3, group(150)) is not None
    assert measured.predict_measured(5, group(150)) is None


def test_late_steps_that_take_longer_are_measured_and_corrected(measured):
    def with_cache(rows, steps):
        return seconds(rows, steps) + max(0, steps - 64) * 1e-6 * rows

    measured.measure_late_steps(with_cache, 512)
    for rows, steps in [(4, 20), (8, 64), (32, 300), (32, 1000)]:
        assert measured.predict(rows, group(steps)) == pytest.approx(with_cache(rows, steps))
    for now in range(200):
        measured.observe(32, 1.5 * with_cache(32, 500), group(500), float(now))
        measured.observe(32, seconds(32, 30), group(30), float(now))
    assert measured.predict(32, group(500)) == pytest.approx(1.5 * with_cache(32, 500), rel=0.1)
    assert measured.predict(32, group(30)) == pytest.approx(seconds(32, 30), rel=0.1)


def test_runs_of_any_length_make_the_others_reliable(measured):
    for now in range(5):
        measured.observe(4, seconds(4, 20), group(20), float(now))
    assert measured.is_reliable(group(300), 5.0)
    assert not measured.is_reliable(group(300), 50.0)
    assert not measured.is_reliable(group(20, OTHER), 5.0)


def test_the_budget_bounds_the_measurement_of_longer_sequences():
    model = SequenceCostModel(SIZES)
    model.measure(lambda rows: seconds(rows, 8), group(8))
    runs = []

    def time_run(rows, steps):
        runs.append(rows)
        return 0.2

    model.measure_steps(time_run, (8, 64), budget=0.5)
    assert {*runs} == {1, 2}
    assert len(runs) == 8  # each takes much longer than expected
    assert model.predict(32, group(64)) > model.predict(32, group(8))


def test_a_larger_batch_than_any_before_is_learned(measured):
    model = SequenceCostModel((1, 2, 4, 8))
    model.observe(2, seconds(2, 50), group(50), 0.0)
    model.observe(8, seconds(8, 50), group(50), 1.0)
    assert [*model.seconds] == [2, 8]
    assert model.predict(8, group(50)) == pytest.approx(seconds(8, 50), rel=0.6)


def test_the_best_batch_size_meets_the_objective_at_typical_steps(measured):
    short = measured.best_batch_size(2 * seconds(16, 8) + 1e-5)
    for now in range(300):
        measured.observe(4, seconds(4, 300), group(300), float(now))
    long = measured.best_batch_size(2 * seconds(16, 8) + 1e-5)
    assert short >= 16 > long


def test_pieces_of_sequences_are_no_typical_lengths(measured):
    for now in range(200):
        measured.note_sequence(group(100))
        measured.observe(8, seconds(8, 4), group(4), float(now))
    assert measured.seconds[8] == pytest.approx(seconds(8, 100), rel=0.01)
    assert measured.best_batch_size(2.1 * seconds(16, 100)) == 16


def test_a_slow_phase_of_the_machine_makes_no_batch_size_slow():
    """It lasts for all runs of one number of rows, were they measured one after the other."""
    for started in range(0, 48, 4):
        model = SequenceCostModel(SIZES)
        model.measure(lambda rows: seconds(rows, 8), group(8))
        runs = iter(range(1000))

        def time_run(rows, steps, runs=runs, started=started):
            factor = 3.0 if started <= next(runs) < started + 8 else 1.0
            return seconds(rows, steps, factor)

        model.measure_steps(time_run, (8, 64))
        for rows in SIZES:
            assert model.predict(rows, group(64)) == pytest.approx(seconds(rows, 64))
