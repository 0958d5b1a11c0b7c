"""Rows of the overview that are about promises, room and what is served."""

from board import MODEL, Row, to_model
from panels import Json, Query, over_time, table
from promql import rate


def objectives() -> Row:
    return Row(
        "Objectives (rules of Prometheus; deploy/prometheus/rules/objectives.yml has the numbers)",
        [
            over_time(
                "Error budget burnt, 1 h",
                "1: the errors of this hour use up a month's budget in just a month. Above 14.4 "
                "for an hour, 2 % of it are gone, and somebody is called.",
                Query(_burn("errors"), "{{model}}"),
                unit="none",
                limit=14.4,
            ),
            over_time(
                "Latency budget burnt, 1 h",
                "The same for answers that were slower than the objective.",
                Query(_burn("slow"), "{{model}}"),
                unit="none",
                limit=14.4,
            ),
            over_time(
                "Answers within the objective",
                "Share of answers that were as quick as promised, over 5 minutes.",
                Query('1 - neurona:slow:ratio_rate5m{job=~"$job", model=~"$model"}', "{{model}}"),
                unit="percentunit",
                low=None,
                high=1,
            ),
        ],
    )


def _burn(objective: str) -> str:
    ratio = f'neurona:{objective}:ratio_rate1h{{job=~"$job", model=~"$model"}}'
    return f"{ratio} / scalar(neurona:objective:{objective}_ratio)"


def saturation() -> Row:
    return Row(
        "Saturation",
        [
            over_time(
                "Time in runs",
                "Seconds of runs in each second. Near the instances of a model (1 by default) "
                "it has no idle time left: more rows a run, more instances or more replicas.",
                Query(rate("neurona_run_duration_seconds_sum", MODEL, "model"), "{{model}}"),
                unit="none",
            ),
            over_time(
                "Queue, share of its limit",
                "At 1 requests are refused. Lasting above one half: demand is above capacity.",
                Query(
                    f"max by (model) (neurona_queue_rows{{{MODEL}}} / "
                    f"(neurona_queue_limit_rows{{{MODEL}}} > 0))",
                    "{{model}}",
                ),
                unit="percentunit",
                high=1,
                limit=0.5,
            ),
            over_time(
                "Oldest request waiting",
                "Seconds in the queue. A line that only climbs: the model stands still.",
                Query(
                    f"max by (model) (neurona_queue_oldest_seconds{{{MODEL}}})",
                    "{{model}}",
                ),
                unit="s",
            ),
        ],
    )


def served() -> Row:
    """Labels may be on several versions: the table has a row for each."""

    def newest(name: str, by: str) -> str:
        return f"max by ({by}) ({name}{{{MODEL}}})"

    return Row(
        "What is served",
        [
            table(
                "Versions",
                "Every version that is known, what state it is in, and whether it has a problem "
                "(1). Versions that serve have a provider: what runs them.",
                Query(newest("neurona_version_problem", "model, version")),
                Query(newest("neurona_version_state", "model, version, state")),
                columns={
                    "model": "Model",
                    "version": "Version",
                    "state": "State",
                    "Value #A": "Problem",
                },
                overrides=[_link_column()],
            ),
            table(
                "Where they run",
                "The provider of ONNX Runtime that runs a version, and whether that is less than "
                "was asked for (degraded, 1).",
                Query(newest("neurona_model_degraded", "model, version")),
                Query(newest("neurona_model_info", "model, version, task, provider")),
                columns={
                    "model": "Model",
                    "version": "Version",
                    "task": "Task",
                    "provider": "Provider",
                    "Value #A": "Degraded",
                },
                overrides=[_link_column()],
            ),
        ],
    )


def _link_column() -> Json:
    links = {"id": "links", "value": [to_model("${__value.text}")]}
    return {"matcher": {"id": "byName", "options": "Model"}, "properties": [links]}
