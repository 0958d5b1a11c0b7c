import math

import pytest

from neurona_server.simulation.experiment import simulate
from neurona_server.simulation.scenario import parse_scenario
from neurona_server.simulation.search import Target, compare_objectives, find_rate, find_replicas

COSTS = [{"rows": 1, "seconds": 0.0021}, {"rows": 64, "seconds": 0.0084}]  # 7,600 rows a second


def scenario(*, rate=2000.0, load=(), model=(), **batching):
    batching = {"costs": COSTS, **batching}
    load = {"rate": rate, **dict(load)}
    return {"models": [{"name": "m", "batching": batching, "load": load, **dict(model)}]}


def report_of(content, seconds=0.4, **options):
    (model,) = simulate(parse_scenario(content), seconds, warm_up=0.1, **options).models
    return model


def test_replicas_share_the_requests():
    one = report_of(scenario(rate=6000.0))
    three = report_of({**scenario(rate=6000.0), "replicas": 3})
    assert (one.refused, three.refused) == (0.0, 0.0)
    assert one.rate == three.rate == pytest.approx(6000, rel=0.05)  # the same requests
    assert three.mean_batch_rows < one.mean_batch_rows / 2
    assert three.p99_ms < one.p99_ms / 1.5


def test_beyond_capacity_an_objective_refuses_instead_of_being_late():
    without = report_of(scenario(rate=12_000.0))
    report = report_of(scenario(rate=12_000.0, latency_objective_seconds=0.05))
    assert without.p50_ms > 100
    assert report.p99_ms < 52
    assert report.in_time > 0.95
    assert report.refused == pytest.approx(1 - 7600 / 12_000, abs=0.06)
    assert report.goodput == pytest.approx(7600, rel=0.07)


def test_the_transport_reads_one_request_after_the_other():
    # 10,000 requests a second can be read, of which each inline run keeps one from being read.
    read = report_of(scenario(rate=4000.0, request_seconds=1e-4))
    inline = report_of(scenario(rate=4000.0, request_seconds=1e-4, inline=True, max_rows=16))
    at_once = report_of(scenario(rate=4000.0))
    assert at_once.p50_ms < read.p50_ms < inline.p50_ms


def test_models_take_turns_on_a_device():
    content = scenario(rate=100.0)
    content["models"].append({**scenario(rate=3000.0)["models"][0], "name": "other"})
    both = simulate(parse_scenario({**content, "slots": {"cpu": 1}}), 0.5).models
    beside = simulate(parse_scenario({**content, "slots": {"cpu": 2}}), 0.5).models
    assert both[0].p50_ms > 1.3 * beside[0].p50_ms
    assert beside[0].p50_ms == pytest.approx(2.1, rel=0.2)


def test_requests_differ_as_the_load_says():
    load = {"rows": {"1": 0.5, "3": 0.5}, "priorities": {"high": 0.5, "low": 0.5}}
    report = report_of(scenario(rate=1000.0, load=load), seconds=1.0)
    assert report.goodput == pytest.approx(2 * report.rate, rel=0.1)
    groups = {"groups": [{"factor": 1.0, "share": 0.5}, {"factor": 3.0, "share": 0.5}]}
    assert report_of(scenario(model=groups)).p50_ms > 1.3 * report_of(scenario()).p50_ms


def test_a_deadline_that_cannot_be_met_is_refused():
    report = report_of(scenario(rate=500.0, load={"deadline_ms": 1.0}))
    assert (report.refused + report.dropped, report.goodput) == (1.0, 0.0)
    assert math.isnan(report.p99_ms)


def test_given_times_replace_the_load():
    times = {"m": [0.11 + 0.01 * number for number in range(20)]}
    report = report_of(scenario(rate=5000.0), times=times)
    assert report.rate == 20 / 0.4
    assert report.p99_ms == pytest.approx(2.1)


def test_a_trace_is_played_at_the_rate_and_repeated(tmp_path):
    (tmp_path / "times").write_text("# seconds\n10\n11,more\n12\n")
    load = {"arrivals": "trace", "trace": "times"}
    report = report_of(scenario(rate=50.0, load=load), seconds=2.0, folder=tmp_path)
    assert report.rate == pytest.approx(50, abs=2)
    assert report.p99_ms == pytest.approx(2.1)


def test_stalls_make_answers_late():
    content = {**scenario(rate=200.0), "stalls": [{"seconds": 0.05, "per_second": 2.0}]}
    report = report_of(content, seconds=4.0)
    assert 50 < report.p99_ms < 200
    assert report.p50_ms == pytest.approx(2.1, rel=0.2)


def test_costs_vary_as_the_quantiles_say():
    quantiles = [
        {"level": level, "run_seconds": seconds, "cycle_seconds": 1.5 * seconds}
        for level, seconds in ((0.01, 0.001), (0.5, 0.002), (0.99, 0.01))
    ]
    costs = [{"rows": 1, "seconds": 0.002, "quantiles": quantiles}, {"rows": 4, "seconds": 0.004}]
    batching = {"costs": costs, "instances": 20}
    report = report_of(scenario(rate=100.0, **batching) | {"slots": {"cpu": 20}}, seconds=20.0)
    assert report.p50_ms == pytest.approx(3.0, rel=0.1)  # the cycle, not the run
    assert report.p99_ms == pytest.approx(15.0, rel=0.25)
    batch_costs = parse_scenario(scenario(**batching)).models[0].batching.batch_costs()
    assert batch_costs.at(4, 0.5).cycle == pytest.approx(0.006)  # which no request has used


def run(scenario):
    return simulate(scenario, 0.15, warm_up=0.05)


def test_the_fewest_replicas_are_found():
    found, reports = find_replicas(parse_scenario(scenario(rate=20_000.0)), Target(p99=0.02), run)
    assert found.replicas == 3
    assert [report.replicas for report in reports] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="more servers do not help"):
        find_replicas(parse_scenario(scenario(rate=10.0)), Target(p99=0.001), run)


def test_the_highest_rate_is_found():
    rate, _ = find_rate(parse_scenario(scenario(rate=1000.0)), Target(p99=0.02), run)
    assert rate == pytest.approx(7300, rel=0.1)
    assert find_rate(parse_scenario(scenario()), Target(p99=0.001), run)[0] == 0.0


def test_a_short_objective_costs_capacity():
    short, long, none = compare_objectives(
        parse_scenario(scenario(rate=1000.0)), [0.006, 0.05, None], run
    )
    assert short.capacity < 0.8 * long.capacity
    assert long.capacity == pytest.approx(none.capacity, rel=0.1)
    assert long.report.models[0].p99_ms < 7
