import pytest

from neurona_server.batching.cost_model import MAX_GROUPS, CostModel, Padding
from neurona_server.batching.policy import BatchPolicy

BATCH_SIZES = BatchPolicy(max_rows=8).batch_sizes


@pytest.fixture
def cost_model():
    cost_model = CostModel(BATCH_SIZES)
    cost_model.measure(lambda rows: rows + 1.0, ("a",), budget=1e9)
    return cost_model


def test_the_ladder_is_powers_of_two_and_the_top():
    assert BatchPolicy(max_rows=8).batch_sizes == (1, 2, 4, 8)
    assert BatchPolicy(max_rows=20).batch_sizes == (1, 2, 4, 8, 16, 20)
    assert BatchPolicy(max_rows=1).batch_sizes == (1,)


def test_the_prediction_is_zero_before_the_first_measurement():
    assert CostModel(BATCH_SIZES).predict(4) == 0.0
    assert CostModel(BATCH_SIZES).best_batch_size(0.1) == 8


def test_predictions_are_linear_between_batch_sizes_and_proportional_above(cost_model):
    assert cost_model.seconds == {1: 2.0, 2: 3.0, 4: 5.0, 8: 9.0}
    assert [cost_model.predict(rows) for rows in (1, 3, 6, 8, 16)] == [2.0, 4.0, 7.0, 9.0, 18.0]


def test_measuring_stops_when_its_time_is_up():
    cost_model = CostModel(BATCH_SIZES)
    cost_model.measure(lambda rows: rows * 1.0, ("a",), budget=8)
    assert sorted(cost_model.seconds) == [1, 2]


def observe(cost_model, rows, seconds, group=("a",), times=1, now=0.0):
    for _ in range(times):
        cost_model.observe(rows, seconds, group, now)


def test_one_run_that_was_held_up_changes_nothing_a_new_speed_does(cost_model):
    observe(cost_model, 4, 500.0)
    assert cost_model.predict(4) == 5.0
    observe(cost_model, 4, 50.0, times=3)
    assert cost_model.predict(4) == 50.0


def test_a_run_between_batch_sizes_updates_the_one_above(cost_model):
    observe(cost_model, 3, 8.0, times=3)  # twice the prediction
    assert cost_model.predict(4) == 10.0


def test_other_groups_cost_the_same_until_they_are_known_and_not_by_their_first_run(cost_model):
    assert cost_model.predict(2, ("b",)) == 3.0
    observe(cost_model, 2, 1000.0, ("b",))  # prepares the device for the shape
    assert cost_model.predict(2, ("b",)) == 3.0
    observe(cost_model, 2, 6.0, ("b",))
    assert cost_model.predict(2, ("b",)) == 6.0
    assert cost_model.predict(8, ("b",)) == 18.0
    assert cost_model.predict(2, ("a",)) == 3.0


def test_only_groups_and_sizes_that_ran_count_as_measured():
    cost_model = CostModel(BATCH_SIZES)
    assert cost_model.predict_measured(1, ("a",)) is None
    cost_model.measure(lambda rows: rows + 1.0, ("a",), budget=6)
    assert [cost_model.predict_measured(rows, ("a",)) for rows in (1, 2, 3)] == [2.0, 3.0, None]
    observe(cost_model, 3, 4.0)
    assert cost_model.predict_measured(3, ("a",)) is not None
    assert cost_model.predict_measured(4, ("a",)) is None
    observe(cost_model, 2, 30.0, ("b",))  # its first run
    assert cost_model.predict_measured(1, ("b",)) is None
    observe(cost_model, 2, 30.0, ("b",))
    assert cost_model.predict_measured(1, ("b",)) is not None
    assert cost_model.predict_measured(3, ("b",)) is None


def test_a_group_is_trusted_by_enough_runs_that_are_fresh(cost_model):
    assert not cost_model.is_reliable(("a",), 0.0)
    observe(cost_model, 2, 3.0)
    assert cost_model.is_reliable(("a",), 1.0)  # it was measured: one run confirms it
    observe(cost_model, 2, 3.0, ("b",), times=3)
    assert not cost_model.is_reliable(("b",), 1.0)
    observe(cost_model, 2, 3.0, ("b",))
    assert cost_model.is_reliable(("b",), 1.0)
    assert not cost_model.is_reliable(("b",), 10.0)


def test_groups_are_remembered_up_to_a_bound(cost_model):
    for number in range(3 * MAX_GROUPS):
        observe(cost_model, 1, 4.0, (number,), times=2)
    assert cost_model.predict(1, (3 * MAX_GROUPS - 1,)) == 4.0
    assert cost_model.predict(1, (0,)) == 2.0
    assert len(cost_model._groups) == MAX_GROUPS


def test_without_warm_up_the_first_runs_teach():
    cost_model = CostModel(BATCH_SIZES)
    observe(cost_model, 3, 6.0)
    assert cost_model.predict(4, ("a",)) == 6.0
    observe(cost_model, 3, 12.0, ("b",), times=2)
    assert cost_model.predict(4, ("b",)) == 12.0


@pytest.mark.parametrize(
    ("objective", "batch_size"), [(None, 8), (100.0, 8), (18.0, 8), (17.0, 4), (9.0, 2), (4.5, 1)]
)
def test_an_objective_allows_the_batch_size_of_which_two_runs_fit(
    cost_model, objective, batch_size
):
    assert cost_model.best_batch_size(objective) == batch_size


def test_of_the_batch_sizes_that_fit_the_one_with_most_rows_per_second_is_taken():
    cost_model = CostModel(BATCH_SIZES)
    cost_model.measure({1: 1.0, 2: 1.1, 4: 1.2, 8: 9.0}.get, ("a",), budget=1e9)
    assert cost_model.best_batch_size(20.0) == 4


def measure_padding(time_run):
    padding = Padding(BATCH_SIZES)
    padding.measure(
        time_run, {batch_size: time_run(batch_size) for batch_size in BATCH_SIZES}, budget=1e9
    )
    return padding


def test_padding_pays_only_where_sizes_between_batch_sizes_cost_more():
    padding = measure_padding(lambda rows: 20.0 if 4 < rows < 8 else rows * 1.0)
    assert padding.padded_sizes == {8}
    assert [padding.padded_rows(rows) for rows in (1, 3, 4, 5, 8, 9)] == [1, 3, 4, 8, 8, 9]


def test_padding_pays_where_a_new_size_has_to_be_prepared():
    prepared = set()

    def time_run(rows):
        measured = rows in prepared or rows in BATCH_SIZES
        prepared.add(rows)
        return rows * (1.0 if measured else 10.0)

    assert measure_padding(time_run).padded_sizes == {4, 8}


def test_a_cost_proportional_to_rows_is_not_padded():
    assert measure_padding(lambda rows: rows + 1.0).padded_sizes == frozenset()


def test_one_slow_size_among_three_is_not_enough_to_pad():
    padding = measure_padding(lambda rows: 100.0 if rows == 6 else rows * 1.0)
    assert padding.padded_sizes == frozenset()


def test_batch_sizes_that_never_ran_are_not_padded_to():
    padding = Padding(BATCH_SIZES)
    measured = dict.fromkeys([1, 2, 4], 1.0)
    padding.measure(lambda rows: 1.0 if rows in BATCH_SIZES else 9.0, measured, budget=1e9)
    assert padding.padded_sizes == {4}


def test_padding_that_takes_long_to_measure_is_not_measured():
    measured_rows = []

    def time_run(rows):
        measured_rows.append(rows)
        return 1.0 if rows in BATCH_SIZES else 9.0

    padding = Padding(BATCH_SIZES)
    padding.measure(time_run, {1: 0.01, 2: 0.02, 4: 0.1, 8: 0.2}, budget=1.0)
    assert padding.padded_sizes == {4}
    assert set(measured_rows) == {3, 4}


def test_long_runs_are_measured_less_often_than_short_ones():
    costs = {1: 0.001, 2: 0.03, 4: 0.06, 8: 0.2}
    measured_rows = []

    def time_run(rows):
        measured_rows.append(rows)
        return costs[rows]

    cost_model = CostModel(BATCH_SIZES)
    cost_model.measure(time_run, ("a",))
    assert [measured_rows.count(batch_size) for batch_size in BATCH_SIZES] == [6, 5, 3, 3]
    assert cost_model.seconds == costs
    measured_rows.clear()
    cost_model.measure(time_run, ("a",), budget=0.25)
    assert [measured_rows.count(batch_size) for batch_size in BATCH_SIZES] == [6, 5, 2, 0]


def test_the_batch_size_follows_the_groups_that_really_run(cost_model):
    assert cost_model.best_batch_size(18.0) == 8
    observe(cost_model, 4, 50.0, ("long",), times=20)  # ten times the cost
    assert cost_model.best_batch_size(50.0) == 1
    assert cost_model.best_batch_size(110.0) == 4


def test_an_objective_that_no_batch_size_meets_takes_the_most_rows_per_second_at_little_more():
    cost_model = CostModel(BATCH_SIZES)
    cost_model.measure({1: 1.0, 2: 1.1, 4: 1.4, 8: 9.0}.get, ("a",), budget=1e9)
    assert cost_model.best_batch_size(0.5) == 4


def test_the_next_batch_size_that_has_not_run_is_tried():
    cost_model = CostModel(BATCH_SIZES)
    cost_model.measure(lambda rows: 1.0, ("a",), budget=0.5)
    assert sorted(cost_model.seconds) == [1]
    assert cost_model.best_batch_size(10.0) == 2
    observe(cost_model, 2, 1.0)
    assert cost_model.best_batch_size(10.0) == 4
    observe(cost_model, 4, 50.0)
    assert cost_model.best_batch_size(10.0) == 2
