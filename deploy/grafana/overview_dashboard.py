"""The dashboard "Overview": are all models healthy, and if not, which one is not?"""

from grafana_foundation_sdk.models.dashboard import Dashboard
from layout import (
    Row,
    dashboard,
    instance_variable,
    job_variable,
    model_dashboard_link,
    model_variable,
)
from panels import query, stat, table, thresholds, time_series
from promql import MODEL, PROCESSES, quantile, rate, ratio


def overview_dashboard() -> Dashboard:
    return dashboard(
        "Overview",
        "All models and processes: rate, errors, latency, saturation, served versions and devices.",
        [job_variable(), instance_variable(), model_variable()],
        [_current_state(), _traffic(), _objectives(), _saturation(), _versions()],
    )


def _current_state() -> Row:
    valid = rate("neurona_requests_total", f'{MODEL}, outcome!~"invalid|cancelled"')
    unsuccessful = rate("neurona_requests_total", f'{MODEL}, outcome=~"failed|rejected|expired"')
    none_expected = (None, "green"), (1, "red")
    return Row(
        "Now",
        [
            stat(
                "Serving processes",
                "Processes whose health is SERVING. Fewer than you run: one is starting, draining "
                "or down.",
                query(f"sum(neurona_serving{{{PROCESSES}}})"),
                unit="none",
                colors=thresholds((None, "red"), (1, "green")),
            ),
            stat(
                "Requests",
                "Finished requests per second, with any outcome. Compare with the same time "
                "yesterday.",
                query(rate("neurona_requests_total", MODEL)),
                unit="reqps",
                colors=thresholds((None, "blue")),
            ),
            stat(
                "Success rate",
                "Share of valid requests that got a response. Failed, rejected and expired "
                "requests reduce it. Below 99.9 % the error budget shrinks.",
                query(f"1 - ({ratio(unsuccessful, valid)})"),
                unit="percentunit",
                decimals=2,
                colors=thresholds((None, "red"), (0.99, "orange"), (0.999, "green")),
            ),
            stat(
                "p99 latency",
                "99 of 100 responses took less, from the request's bytes to the response's, over "
                "all models. The panels below show each model.",
                query(quantile(0.99, "neurona_request_duration_seconds", MODEL)),
                unit="s",
                colors=thresholds((None, "green"), (0.25, "orange"), (1, "red")),
            ),
            stat(
                "Alerts",
                "Alerts that are firing in Prometheus. Each one has a runbook.",
                query('count(ALERTS{alertstate="firing", job=~"$job"}) or vector(0)'),
                unit="none",
                colors=thresholds(*none_expected),
            ),
            stat(
                "Versions with a problem",
                "Versions that failed to load, or whose files differ from what is served. "
                "Models.List has the reason. Investigate any.",
                query(f"sum(max by (model, version) (neurona_version_problem{{{MODEL}}}))"),
                unit="none",
                colors=thresholds(*none_expected),
            ),
            stat(
                "Degraded models",
                "Models that do not run where they should: on a CPU instead of a GPU. They "
                "respond, but more slowly.",
                query(f"sum(max by (model, version) (neurona_model_degraded{{{MODEL}}}))"),
                unit="none",
                colors=thresholds(*none_expected),
            ),
            stat(
                "Longest queue wait",
                "How long the oldest request in any queue has been waiting to run.",
                query(f"max(neurona_queue_oldest_seconds{{{MODEL}}})"),
                unit="s",
                colors=thresholds((None, "green"), (0.5, "orange"), (2, "red")),
            ),
        ],
    )


def _traffic() -> Row:
    seconds = "neurona_request_duration_seconds"
    return Row(
        "Traffic and latency",
        [
            time_series(
                "Requests by model",
                "A line that falls to 0 while the others continue: check its callers, its labels "
                "and the model itself. Click a line for the dashboard of its model.",
                query(rate("neurona_requests_total", MODEL, "model"), "{{model}}"),
                unit="reqps",
                stacked=True,
                links=[model_dashboard_link()],
            ),
            time_series(
                "Requests by outcome",
                "rejected: not enough capacity or time, reported immediately. expired: the "
                "deadline passed. failed: the model could not run the request. invalid: an error "
                "of the caller. cancelled: the caller disconnected. Act on failed at once, on "
                "rejected and expired when they persist.",
                query(rate("neurona_requests_total", MODEL, "outcome"), "{{outcome}}"),
                unit="reqps",
                stacked=True,
            ),
            time_series(
                "Requests for unknown models",
                "Unknown models, versions and labels, and unreadable messages. A jump after a "
                "rollout: a label or a version that callers use was removed.",
                query(
                    rate("neurona_requests_total", f'{PROCESSES}, model=""', "outcome"),
                    "{{outcome}}",
                ),
                unit="reqps",
            ),
            time_series(
                "p50 latency by model",
                "Half of the responses took less. It grows with load because batches grow: up to "
                "the duration of a full batch this is normal.",
                query(quantile(0.5, seconds, MODEL, "model"), "{{model}}", exemplars=True),
                unit="s",
                logarithmic=True,
                links=[model_dashboard_link()],
            ),
            time_series(
                "p99 latency by model",
                "99 of 100 responses took less. Far above p50 with a short queue: some runs are "
                "slow; with a long queue: not enough capacity. Dots are traced requests.",
                query(quantile(0.99, seconds, MODEL, "model"), "{{model}}", exemplars=True),
                unit="s",
                logarithmic=True,
                links=[model_dashboard_link()],
            ),
            time_series(
                "Calls rejected before a model",
                "Calls rejected before they reached a model, by reason: no valid token, no "
                "permission, too large, too many. A jump of unauthenticated: a token expired, or "
                "an unknown client tries.",
                query(rate("neurona_rejected_calls_total", PROCESSES, "reason"), "{{reason}}"),
                unit="reqps",
            ),
        ],
    )


def _objectives() -> Row:
    def burn_rate(objective: str) -> str:
        errors = f'neurona:{objective}:ratio_rate1h{{job=~"$job", model=~"$model"}}'
        return f"{errors} / scalar(neurona:objective:{objective}_ratio)"

    return Row(
        "Objectives (Prometheus rules, set in deploy/prometheus/rules/objectives.yml)",
        [
            time_series(
                "Error budget burn rate, 1 h",
                "1: at the rate of the last hour, a month's error budget lasts exactly a month. "
                "Above 14.4 for an hour, 2 % of it are spent, and an alert pages.",
                query(burn_rate("errors"), "{{model}}"),
                unit="none",
                limit=14.4,
                width=6,
            ),
            time_series(
                "Latency budget burn rate, 1 h",
                "The same for responses that were slower than the objective.",
                query(burn_rate("slow"), "{{model}}"),
                unit="none",
                limit=14.4,
                width=6,
            ),
            time_series(
                "Responses within the latency objective",
                "Share of responses that met the latency objective, over 5 minutes.",
                query('1 - neurona:slow:ratio_rate5m{job=~"$job", model=~"$model"}', "{{model}}"),
                unit="percentunit",
                minimum=None,
                maximum=1,
                width=6,
            ),
            time_series(
                "Requests that met latency_objective_ms",
                "Share of the admitted requests that the server answered within the objective of "
                "their model, over 5 minutes. It rejects what would be late, so this stays near 1 "
                "beyond capacity too. Empty: no model has an objective.",
                query(
                    'neurona:objective_met:ratio_rate5m{job=~"$job", model=~"$model"}', "{{model}}"
                ),
                unit="percentunit",
                minimum=None,
                maximum=1,
                width=6,
            ),
        ],
    )


def _saturation() -> Row:
    return Row(
        "Saturation",
        [
            time_series(
                "Run time per second",
                "Seconds of runs in each second. Near the model's number of instances (1 by "
                "default) it has no idle time left: use larger batches, more instances or more "
                "replicas.",
                query(rate("neurona_run_duration_seconds_sum", MODEL, "model"), "{{model}}"),
                unit="none",
            ),
            time_series(
                "Queue as a share of its limit",
                "At 1, requests are rejected. Above one half for long: demand exceeds capacity.",
                query(
                    f"max by (model) (neurona_queue_rows{{{MODEL}}} / "
                    f"(neurona_queue_limit_rows{{{MODEL}}} > 0))",
                    "{{model}}",
                ),
                unit="percentunit",
                maximum=1,
                limit=0.5,
            ),
            time_series(
                "Oldest queued request",
                "Its seconds in the queue. A line that only climbs: the model is stuck.",
                query(f"max by (model) (neurona_queue_oldest_seconds{{{MODEL}}})", "{{model}}"),
                unit="s",
            ),
        ],
    )


def _versions() -> Row:
    """Joins by model and version: labels may be on several versions."""

    def largest(name: str, by: str) -> str:
        return f"max by ({by}) ({name}{{{MODEL}}})"

    link = model_dashboard_link("${__value.text}")
    return Row(
        "Served versions",
        [
            table(
                "Versions",
                "Every version the server knows, its state, and whether it has a problem (1).",
                query(largest("neurona_version_problem", "model, version")),
                query(largest("neurona_version_state", "model, version, state")),
                columns={
                    "model": "Model",
                    "version": "Version",
                    "state": "State",
                    "Value #A": "Problem",
                },
                model_link=link,
            ),
            table(
                "Execution providers",
                "The ONNX Runtime provider that runs a version, and whether it is worse than the "
                "requested one (degraded, 1).",
                query(largest("neurona_model_degraded", "model, version")),
                query(largest("neurona_model_info", "model, version, task, provider")),
                columns={
                    "model": "Model",
                    "version": "Version",
                    "task": "Task",
                    "provider": "Provider",
                    "Value #A": "Degraded",
                },
                model_link=link,
            ),
        ],
    )
