"""Neurona / Overview: are all models well, and if not, which one."""

from board import MODEL, PROCESSES, Row, dashboard, to_model
from overview_state import objectives, saturation, served
from panels import Json, Query, number, over_time, steps
from promql import quantile, rate, share
from variables import datasource, instance, job, model

LOST = f'{MODEL}, outcome=~"failed|rejected|expired"'
GOOD_IS_HIGH = steps((None, "red"), (0.99, "orange"), (0.999, "green"))
NONE_IS_GOOD = steps((None, "green"), (1, "red"))


def overview() -> Json:
    return dashboard(
        "Overview",
        "All models and processes: rate, errors, latency, saturation, what is served and where.",
        [datasource(), job(), instance(), model()],
        [_now(), _traffic(), objectives(), saturation(), served()],
    )


def _now() -> Row:
    lost = share(rate("neurona_requests_total", LOST), _counted())
    return Row(
        "Now",
        [
            number(
                "Processes that serve",
                "Whose health is SERVING. Fewer than you run: one starts, drains or is gone.",
                Query(f"sum(neurona_serving{{{PROCESSES}}})"),
                unit="none",
                thresholds=steps((None, "red"), (1, "green")),
            ),
            number(
                "Requests",
                "That ended in any way, a second. Compare with yesterday at this time.",
                Query(rate("neurona_requests_total", MODEL)),
                unit="reqps",
                thresholds=steps((None, "blue")),
            ),
            number(
                "Answered",
                "Share of the valid requests that got an answer. What failed, was refused for want "
                "of room or came too late is missing. Below 99.9 % the error budget shrinks.",
                Query(f"1 - ({lost})"),
                unit="percentunit",
                decimals=2,
                thresholds=GOOD_IS_HIGH,
            ),
            number(
                "p99 latency",
                "99 of 100 answers took less, from the request's bytes to the answer's, over all "
                "models: below, each one is its own line.",
                Query(quantile(0.99, "neurona_request_duration_seconds", MODEL)),
                unit="s",
                thresholds=steps((None, "green"), (0.25, "orange"), (1, "red")),
            ),
            number(
                "Alerts",
                "That fire in Prometheus right now. Each one has a runbook.",
                Query('count(ALERTS{alertstate="firing", job=~"$job"}) or vector(0)'),
                unit="none",
                thresholds=NONE_IS_GOOD,
            ),
            number(
                "Versions with a problem",
                "That failed to load, or whose files are not what serves. Models.List has the "
                "reason. Any is worth a look.",
                Query(f"sum(max by (model, version) (neurona_version_problem{{{MODEL}}}))"),
                unit="none",
                thresholds=NONE_IS_GOOD,
            ),
            number(
                "Degraded models",
                "That do not run where they should: on a CPU in place of a GPU. They answer, but "
                "more slowly.",
                Query(f"sum(max by (model, version) (neurona_model_degraded{{{MODEL}}}))"),
                unit="none",
                thresholds=NONE_IS_GOOD,
            ),
            number(
                "Oldest waiting",
                "How long the request that has waited longest for its run has waited.",
                Query(f"max(neurona_queue_oldest_seconds{{{MODEL}}})"),
                unit="s",
                thresholds=steps((None, "green"), (0.5, "orange"), (2, "red")),
            ),
        ],
    )


def _counted() -> str:
    """Requests that are the server's to answer: not those that were invalid or given up."""
    return rate("neurona_requests_total", f'{MODEL}, outcome!~"invalid|cancelled"')


def _traffic() -> Row:
    seconds = "neurona_request_duration_seconds"
    return Row(
        "Traffic and latency",
        [
            over_time(
                "Requests by model",
                "A line that falls to 0 while the others go on: its callers, its labels or the "
                "model itself. Click it for the model's own dashboard.",
                Query(rate("neurona_requests_total", MODEL, "model"), "{{model}}"),
                unit="reqps",
                stacked=True,
                links=[to_model()],
            ),
            over_time(
                "Requests by how they ended",
                "rejected: no room or no time, told at once. expired: the deadline passed. failed: "
                "the model could not run it. invalid: the caller's mistake. cancelled: the caller "
                "went away. Worry about failed at once, about the next two when they last.",
                Query(rate("neurona_requests_total", MODEL, "outcome"), "{{outcome}}"),
                unit="reqps",
                stacked=True,
            ),
            over_time(
                "Requests for what is not there",
                "Unknown models, versions and labels, and messages that cannot be read. A jump "
                "after a rollout: a label or a version that callers use is gone.",
                Query(
                    rate("neurona_requests_total", f'{PROCESSES}, model=""', "outcome"),
                    "{{outcome}}",
                ),
                unit="reqps",
            ),
            over_time(
                "p50 latency by model",
                "Half of the answers took less. It grows with load as batches grow: by up to the "
                "time of a full batch that is no fault.",
                Query(quantile(0.5, seconds, MODEL, "model"), "{{model}}", exemplars=True),
                unit="s",
                logarithmic=True,
                links=[to_model()],
            ),
            over_time(
                "p99 latency by model",
                "99 of 100 answers took less. Far above p50 while the queue is short: single slow "
                "runs; with a long queue: too little room. Dots are single requests with a trace.",
                Query(quantile(0.99, seconds, MODEL, "model"), "{{model}}", exemplars=True),
                unit="s",
                logarithmic=True,
                links=[to_model()],
            ),
            over_time(
                "Calls refused at the transport",
                "Before they reached a model, by reason: without a token, without the right, too "
                "large, too many. A jump of unauthenticated: a token that ran out, or a stranger.",
                Query(
                    rate("neurona_rejected_calls_total", PROCESSES, "reason"),
                    "{{reason}}",
                ),
                unit="reqps",
            ),
        ],
    )
