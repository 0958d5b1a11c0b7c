"""Neurona / One model: where its time goes, version by version."""

from board import EVERY, VERSION, Row, dashboard
from model_runs import batching, devices, loading, shadow
from panels import Json, Query, number, over_time, spread, steps
from promql import mean, quantile, rate
from variables import datasource, instance, job, version
from variables import model as model_variable

SECONDS = "neurona_request_duration_seconds"


def model() -> Json:
    return dashboard(
        "One model",
        "One model and its versions: rate, latency, batches, queue, shadow, loads, devices.",
        [datasource(), job(), instance(), model_variable("one"), version()],
        [_now(), _traffic(), _latency(), batching(), _queue(), shadow(), loading(), devices()],
    )


def _now() -> Row:
    return Row(
        "Now",
        [
            number(
                "Requests",
                "That ended in any way, a second.",
                Query(rate("neurona_requests_total", VERSION)),
                unit="reqps",
                thresholds=steps((None, "blue")),
                width=4,
            ),
            number(
                "p50 latency",
                "Half of the answers took less.",
                Query(quantile(0.5, SECONDS, VERSION)),
                unit="s",
                thresholds=steps((None, "blue")),
                width=4,
            ),
            number(
                "p99 latency",
                "99 of 100 answers took less.",
                Query(quantile(0.99, SECONDS, VERSION)),
                unit="s",
                thresholds=steps((None, "green"), (0.25, "orange"), (1, "red")),
                width=4,
            ),
            number(
                "Mean rows in a run",
                "The mean. 1 under load: nothing is gathered, and throughput is wasted; see the "
                "batch limit below and whether shapes differ.",
                Query(mean("neurona_batch_rows", VERSION)),
                unit="none",
                decimals=1,
                thresholds=steps((None, "blue")),
                width=4,
            ),
            number(
                "Degraded",
                "1: it does not run where it should, as on a GPU. Models.List says why.",
                Query(f"max(neurona_model_degraded{{{VERSION}}})"),
                unit="none",
                thresholds=steps((None, "green"), (1, "red")),
                names={"0": {"text": "no"}, "1": {"text": "yes"}},
                width=4,
            ),
            number(
                "Problem",
                "1: a version failed to load, or its files are not what serves.",
                Query(f"max(neurona_version_problem{{{VERSION}}})"),
                unit="none",
                thresholds=steps((None, "green"), (1, "red")),
                names={"0": {"text": "no"}, "1": {"text": "yes"}},
                width=4,
            ),
        ],
    )


def _traffic() -> Row:
    by_version = rate("neurona_requests_total", VERSION, "model, version")
    labels = f"max by (model, version, label) (neurona_version_label{{{VERSION}}})"
    by_label = f"sum by (label) ({labels} * on (model, version) group_left () {by_version})"
    return Row(
        "Traffic",
        [
            over_time(
                "Requests by version",
                "During a rollout one line takes over from the other. A version that nobody calls "
                "any more only takes memory.",
                Query(rate("neurona_requests_total", VERSION, "version"), "version {{version}}"),
                unit="reqps",
                stacked=True,
                width=6,
            ),
            over_time(
                "Requests by label",
                "What the versions get to which a label points now, however the caller chose "
                "them. Nothing here: the model has no labels.",
                Query(by_label, "{{label}}"),
                unit="reqps",
                width=6,
            ),
            over_time(
                "Share of requests that name no version",
                "As the default and [traffic] in model.toml say. A canary at 0 gets nothing.",
                Query(
                    f"avg by (version) (neurona_version_share_ratio{{{VERSION}}})",
                    "version {{version}}",
                ),
                unit="percentunit",
                high=1,
                width=6,
            ),
            over_time(
                "Requests by how they ended",
                "failed: the model could not run it, the log says why. rejected and expired: too "
                "little room. invalid: wrong inputs. cancelled: nobody waits any more.",
                Query(rate("neurona_requests_total", VERSION, "outcome"), "{{outcome}}"),
                unit="reqps",
                stacked=True,
                width=6,
            ),
        ],
    )


def _of_requests(stage: str) -> str:
    """Mean seconds of a stage, weighed by the answers of each version: what runs for nobody, like a
    shadow, is left out."""
    counts = f"(rate({stage}_count{{{VERSION}}}[{EVERY}]) > 0)"
    means = f"rate({stage}_sum{{{VERSION}}}[{EVERY}]) / {counts}"
    answers = f"rate({SECONDS}_count{{{VERSION}}}[{EVERY}])"
    return f"sum({means} * {answers}) / sum({answers})"


def _latency() -> Row:
    queue, run = "neurona_queue_duration_seconds", "neurona_run_duration_seconds"
    waited, of_runs = _of_requests(queue), _of_requests(run)
    rest = f"clamp_min({mean(SECONDS, VERSION)} - ({waited}) - ({of_runs}), 0)"
    return Row(
        "Latency",
        [
            over_time(
                "Latency by version",
                "Two versions side by side: a new one that is slower shows here first. Dots are "
                "single requests with a trace.",
                Query(quantile(0.5, SECONDS, VERSION, "version"), "p50, version {{version}}"),
                Query(
                    *(quantile(0.99, SECONDS, VERSION, "version"), "p99, version {{version}}"),
                    exemplars=True,
                ),
                unit="s",
                logarithmic=True,
                width=6,
            ),
            over_time(
                "Mean latency by stage",
                "queue: until its batch was cut. run: the batch's run, joining included. the rest: "
                "reading, checking, splitting, encoding. Mostly queue: too little room. Mostly "
                "run: the model itself, or too few threads. Mostly the rest: large messages, or "
                "one process whose Python is busy.",
                Query(waited, "queue"),
                Query(of_runs, "run"),
                Query(rest, "the rest"),
                unit="s",
                stacked=True,
                width=6,
            ),
            over_time(
                "p99 by stage",
                "Of each stage by itself, so they do not add up. A shadow is in it, too: choose a "
                "version to leave it out.",
                Query(quantile(0.99, queue, VERSION), "queue"),
                Query(quantile(0.99, run, VERSION), "run"),
                Query(quantile(0.99, SECONDS, VERSION), "whole request"),
                unit="s",
                logarithmic=True,
                width=6,
            ),
            spread(
                "Latencies",
                "How many answers took how long. Two bands: two kinds of requests, or runs that "
                "wait for one another.",
                Query(rate(f"{SECONDS}_bucket", VERSION, "le"), "{{le}}", exemplars=True),
                unit="s",
                width=6,
            ),
        ],
    )


def _queue() -> Row:
    def most(name: str, by: str = "version") -> str:
        return f"max by ({by}) ({name}{{{VERSION}}})"

    return Row(
        "Queue",
        [
            over_time(
                "Oldest request waiting",
                "Only climbing: the model stands still, or gets no turn on its device.",
                Query(most("neurona_queue_oldest_seconds"), "version {{version}}"),
                unit="s",
            ),
            over_time(
                "Rows waiting",
                "And how many may (max_queue_rows). What would exceed it is refused.",
                Query(f"sum by (version) (neurona_queue_rows{{{VERSION}}})", "version {{version}}"),
                Query(most("neurona_queue_limit_rows"), "limit, version {{version}}"),
                unit="none",
            ),
            over_time(
                "Bytes waiting",
                "Of inputs. Large ones fill max_queue_bytes before max_queue_rows.",
                Query(
                    f"sum by (version) (neurona_queue_bytes{{{VERSION}}})",
                    "version {{version}}",
                ),
                unit="bytes",
            ),
        ],
    )
