"""The dashboard "Model": where does the time of one model go, version by version?"""

from grafana_foundation_sdk.models.dashboard import Dashboard
from layout import (
    Row,
    dashboard,
    instance_variable,
    job_variable,
    model_variable,
    version_variable,
)
from panels import heatmap, query, stat, state_timeline, thresholds, time_series
from promql import MODEL, RATE_INTERVAL, VERSION, mean, quantile, rate, ratio

REQUEST_SECONDS = "neurona_request_duration_seconds"
QUEUE_SECONDS = "neurona_queue_duration_seconds"
RUN_SECONDS = "neurona_run_duration_seconds"


def model_dashboard() -> Dashboard:
    return dashboard(
        "Model",
        "One model and its versions: rate, latency, batches, queue, sessions, shadow, loads, "
        "devices.",
        [
            job_variable(),
            instance_variable(),
            model_variable(multiple=False),
            version_variable(),
        ],
        [
            _current_state(),
            _traffic(),
            _latency(),
            _batching(),
            _queue(),
            _objective(),
            _sequences(),
            _shadow(),
            _loading(),
            _devices(),
        ],
    )


def _current_state() -> Row:
    return Row(
        "Now",
        [
            stat(
                "Requests",
                "Finished requests per second, with any outcome.",
                query(rate("neurona_requests_total", VERSION)),
                unit="reqps",
                colors=thresholds((None, "blue")),
                width=4,
            ),
            stat(
                "p50 latency",
                "Half of the responses took less.",
                query(quantile(0.5, REQUEST_SECONDS, VERSION)),
                unit="s",
                colors=thresholds((None, "blue")),
                width=4,
            ),
            stat(
                "p99 latency",
                "99 of 100 responses took less.",
                query(quantile(0.99, REQUEST_SECONDS, VERSION)),
                unit="s",
                colors=thresholds((None, "green"), (0.25, "orange"), (1, "red")),
                width=4,
            ),
            stat(
                "Mean batch size",
                "Mean rows of a run. 1 under load: requests are not batched, and throughput is "
                "wasted; see the batch limit below, and whether input shapes differ.",
                query(mean("neurona_batch_rows", VERSION)),
                unit="none",
                decimals=1,
                colors=thresholds((None, "blue")),
                width=4,
            ),
            stat(
                "Degraded",
                "yes: the model does not run where it should, for example on a GPU. Models.List "
                "has the reason.",
                query(f"max(neurona_model_degraded{{{VERSION}}})"),
                unit="none",
                colors=thresholds((None, "green"), (1, "red")),
                words={"0": "no", "1": "yes"},
                width=4,
            ),
            stat(
                "Problem",
                "yes: a version failed to load, or its files differ from what is served.",
                query(f"max(neurona_version_problem{{{VERSION}}})"),
                unit="none",
                colors=thresholds((None, "green"), (1, "red")),
                words={"0": "no", "1": "yes"},
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
            time_series(
                "Requests by version",
                "During a rollout one line takes over from the other. A version without requests "
                "only uses memory.",
                query(rate("neurona_requests_total", VERSION, "version"), "version {{version}}"),
                unit="reqps",
                stacked=True,
                width=6,
            ),
            time_series(
                "Requests by label",
                "Requests to the versions that each label points to now, no matter how callers "
                "selected the version. Empty: the model has no labels.",
                query(by_label, "{{label}}"),
                unit="reqps",
                width=6,
            ),
            time_series(
                "Share of requests without a version",
                "How requests that name no version are split, by default and [traffic] in "
                "model.toml. A canary at 0 gets none.",
                query(
                    f"avg by (version) (neurona_version_share_ratio{{{VERSION}}})",
                    "version {{version}}",
                ),
                unit="percentunit",
                maximum=1,
                width=6,
            ),
            time_series(
                "Requests by outcome",
                "failed: the model could not run the request; the log has the reason. rejected "
                "and expired: not enough capacity. invalid: wrong inputs. cancelled: the caller "
                "disconnected.",
                query(rate("neurona_requests_total", VERSION, "outcome"), "{{outcome}}"),
                unit="reqps",
                stacked=True,
                width=6,
            ),
        ],
    )


def _mean_per_response(stage: str) -> str:
    """Mean seconds of a stage, weighted by the responses of each version: runs without a response,
    such as a shadow's, have no weight."""
    runs = f"(rate({stage}_count{{{VERSION}}}[{RATE_INTERVAL}]) > 0)"
    means = f"rate({stage}_sum{{{VERSION}}}[{RATE_INTERVAL}]) / {runs}"
    responses = f"rate({REQUEST_SECONDS}_count{{{VERSION}}}[{RATE_INTERVAL}])"
    return f"sum({means} * {responses}) / sum({responses})"


def _latency() -> Row:
    queue, run = _mean_per_response(QUEUE_SECONDS), _mean_per_response(RUN_SECONDS)
    remainder = f"clamp_min({mean(REQUEST_SECONDS, VERSION)} - ({queue}) - ({run}), 0)"
    return Row(
        "Latency",
        [
            time_series(
                "Latency by version",
                "Compares versions: a new version that is slower shows here first. Dots are "
                "traced requests.",
                query(
                    quantile(0.5, REQUEST_SECONDS, VERSION, "version"), "p50, version {{version}}"
                ),
                query(
                    quantile(0.99, REQUEST_SECONDS, VERSION, "version"),
                    "p99, version {{version}}",
                    exemplars=True,
                ),
                unit="s",
                logarithmic=True,
                width=6,
            ),
            time_series(
                "Mean latency by stage",
                "queue: until the batch starts. run: the run of the batch, joining included. "
                "other: reading, checking, splitting, encoding. Mostly queue: not enough "
                "capacity. Mostly run: the model itself, or too few threads. Mostly other: large "
                "messages, or one process whose Python is busy.",
                query(queue, "queue"),
                query(run, "run"),
                query(remainder, "other"),
                unit="s",
                stacked=True,
                width=6,
            ),
            time_series(
                "p99 by stage",
                "Of each stage alone, so they do not add up. Includes the shadow's requests: "
                "select a version to exclude them.",
                query(quantile(0.99, QUEUE_SECONDS, VERSION), "queue"),
                query(quantile(0.99, RUN_SECONDS, VERSION), "run"),
                query(quantile(0.99, REQUEST_SECONDS, VERSION), "whole request"),
                unit="s",
                logarithmic=True,
                width=6,
            ),
            heatmap(
                "Latency distribution",
                "Responses by their latency. Two bands: two kinds of requests, or runs that wait "
                "for each other.",
                query(rate(f"{REQUEST_SECONDS}_bucket", VERSION, "le"), "{{le}}", exemplars=True),
                unit="s",
                width=6,
            ),
        ],
    )


def _batching() -> Row:
    padding = rate("neurona_padding_rows_total", VERSION, "version")
    rows = rate("neurona_rows_total", VERSION, "version")
    rows_and_padding = f"({rows} + ({padding} or {rows} * 0))"
    actual_to_predicted = "neurona_run_predicted_ratio"
    join_seconds = mean("neurona_join_duration_seconds", VERSION)
    return Row(
        "Runs and batches",
        [
            heatmap(
                "Batch sizes",
                "Rows of each run. Under load they should be near the batch limit. Always 1: the "
                "model is not batched (its log line at the load has the reason), or requests "
                "arrive one by one.",
                query(rate("neurona_batch_rows_bucket", VERSION, "le"), "{{le}}"),
                unit="none",
                width=6,
            ),
            time_series(
                "Rows and requests per batch",
                "Means, and the limit of the rows of a batch.",
                query(mean("neurona_batch_rows", VERSION, "version"), "rows, version {{version}}"),
                query(
                    mean("neurona_batch_requests", VERSION, "version"),
                    "requests, version {{version}}",
                ),
                query(
                    f"min by (version) (neurona_batch_limit_rows{{{VERSION}}})",
                    "limit, version {{version}}",
                ),
                unit="none",
                width=6,
            ),
            time_series(
                "Padding",
                "Share of rows that are padding, added to reach a batch size that the model was "
                "measured with. Above 30 % for long: callers send batches just above such a "
                "size; see the runbook.",
                query(ratio(padding, rows_and_padding), "version {{version}}"),
                unit="percentunit",
                maximum=1,
                limit=0.3,
                width=6,
            ),
            time_series(
                "Actual to predicted run duration",
                "1 is a perfect prediction; admission and batch sizes depend on it. p90 above 2 "
                "for long: something else uses the CPU or GPU, or run durations depend on the "
                "data.",
                query(quantile(0.5, actual_to_predicted, VERSION), "p50"),
                query(quantile(0.9, actual_to_predicted, VERSION), "p90"),
                unit="none",
                limit=2,
                width=6,
            ),
            time_series(
                "Predicted run duration by rows",
                "The measured cost of a run. Flat on the left: larger batches are free there.",
                query(
                    f"max by (version, rows) (neurona_run_predicted_seconds{{{VERSION}}})",
                    "{{rows}} rows, version {{version}}",
                ),
                unit="s",
                logarithmic=True,
                width=6,
            ),
            time_series(
                "Mean run by phase",
                "join: concatenates the rows of the requests. run: ONNX Runtime. split: gives "
                "each request its rows and its response. Much join and split: many small "
                "requests, or large tensors.",
                query(join_seconds, "join"),
                query(f"clamp_min({mean(RUN_SECONDS, VERSION)} - ({join_seconds}), 0)", "run"),
                query(mean("neurona_split_duration_seconds", VERSION), "split"),
                unit="s",
                stacked=True,
                width=6,
            ),
            time_series(
                "Run time per second",
                "Seconds of runs in each second. At the number of instances there is no idle "
                "time left. inline: 1 while runs are so short that the transport's thread "
                "executes them itself.",
                query(
                    rate("neurona_run_duration_seconds_sum", VERSION, "version"),
                    "version {{version}}",
                ),
                query(
                    f"max by (version) (neurona_inline{{{VERSION}}})",
                    "inline, version {{version}}",
                ),
                unit="none",
                width=6,
            ),
            time_series(
                "Terminated and overdue runs",
                "Runs stopped early, mostly because all their callers disconnected or their "
                "deadlines passed: many mean that deadlines are shorter than runs. Overdue: runs "
                "in progress that take ten times as long as predicted.",
                query(
                    rate("neurona_terminated_runs_total", VERSION, "version"),
                    "terminated, version {{version}}",
                ),
                query(
                    f"sum by (version) (neurona_overdue_runs{{{VERSION}}})",
                    "overdue, version {{version}}",
                ),
                unit="ops",
                width=6,
            ),
        ],
    )


def _queue() -> Row:
    def largest(name: str) -> str:
        return f"max by (version) ({name}{{{VERSION}}})"

    return Row(
        "Queue",
        [
            time_series(
                "Oldest queued request",
                "A line that only climbs: the model is stuck, or does not get its device.",
                query(largest("neurona_queue_oldest_seconds"), "version {{version}}"),
                unit="s",
                width=6,
            ),
            time_series(
                "Queued rows",
                "With their limit (max_queue_rows). Requests that would exceed it are rejected.",
                query(f"sum by (version) (neurona_queue_rows{{{VERSION}}})", "version {{version}}"),
                query(largest("neurona_queue_limit_rows"), "limit, version {{version}}"),
                unit="none",
                width=6,
            ),
            time_series(
                "Queued bytes",
                "Bytes of inputs. Large inputs reach max_queue_bytes before max_queue_rows.",
                query(
                    f"sum by (version) (neurona_queue_bytes{{{VERSION}}})", "version {{version}}"
                ),
                unit="bytes",
                width=6,
            ),
            time_series(
                "Displaced requests",
                "Waiting requests that gave their places in a full queue to more urgent ones "
                "(rejected, as those that found it full).",
                query(
                    rate("neurona_displaced_requests_total", VERSION, "version"),
                    "version {{version}}",
                ),
                unit="reqps",
                width=6,
            ),
        ],
    )


def _objective() -> Row:
    def largest(name: str) -> str:
        return f"max by (version) ({name}{{{VERSION}}})"

    missed = rate("neurona_objective_requests_total", f'{VERSION}, result="missed"', "version")
    return Row(
        "Latency objective (latency_objective_ms; empty: the model has none)",
        [
            time_series(
                "Requests that met the objective",
                "Share of the admitted requests of the last 5 minutes that were answered within "
                "the objective, and before their own deadlines. Below 99.9 %: the runbook of "
                "NeuronaObjectiveMissed says what to look for.",
                query(
                    f"min by (version) (neurona_objective_met_ratio{{{VERSION}}})",
                    "version {{version}}",
                ),
                unit="percentunit",
                minimum=None,
                maximum=1,
                width=6,
            ),
            time_series(
                "p99 latency and the objective",
                "Beyond capacity p99 stays below the objective, since what would be late is "
                "rejected. Far below it with rejections: the objective is too short for batches.",
                query(quantile(0.99, REQUEST_SECONDS, VERSION, "version"), "version {{version}}"),
                query(largest("neurona_latency_objective_seconds"), "objective of {{version}}"),
                unit="s",
                width=6,
            ),
            time_series(
                "Late and dropped requests",
                "Admitted requests that missed the objective. Dropped: those among them, and "
                "those with a deadline, that were not run since they would have been late.",
                query(missed, "missed, version {{version}}"),
                query(
                    rate("neurona_dropped_requests_total", VERSION, "version"),
                    "dropped, version {{version}}",
                ),
                unit="reqps",
                width=6,
            ),
            time_series(
                "Time to retry after",
                "What rejected requests were told (retry-after-ms): half and nine of ten were "
                "told to wait less. It grows with what waits. Seconds: more replicas are missing.",
                query(
                    quantile(0.5, "neurona_retry_after_seconds", VERSION, "version"),
                    "p50, version {{version}}",
                ),
                query(
                    quantile(0.9, "neurona_retry_after_seconds", VERSION, "version"),
                    "p90, version {{version}}",
                ),
                unit="s",
                width=6,
            ),
        ],
    )


def _sequences() -> Row:
    padding = rate("neurona_sequence_padding_steps_total", VERSION, "version")
    steps = rate("neurona_sequence_steps_total", VERSION, "version")
    return Row(
        "Sequences and sessions",
        [
            time_series(
                "How sequences share runs",
                "1 for the method: cellular (runs of a few steps, which sequences join and leave), "
                "ragged (padded to the longest) or equal_lengths. The last one, for long: the log "
                "line of the load and Models.Describe say why.",
                query(
                    f"max by (version, method) (neurona_model_sequence_info{{{VERSION}}})",
                    "{{method}}, version {{version}}",
                ),
                unit="none",
                width=8,
            ),
            time_series(
                "Padding steps",
                "Share of the steps run that are padding, since sequences of different lengths "
                "shared a run. The server pads only where that is faster than more runs.",
                query(ratio(padding, f"({steps} + {padding})"), "version {{version}}"),
                unit="percentunit",
                maximum=1,
                width=8,
            ),
            time_series(
                "Open sessions",
                "Sequences that callers of a recurrent model send step by step, and whose state "
                "the server keeps. At max_sessions the one idle longest ends for a new one.",
                query(
                    f"sum by (version) (neurona_sessions_open{{{VERSION}}})", "version {{version}}"
                ),
                unit="none",
                width=8,
            ),
            time_series(
                "Steps of sessions",
                "Steps that were answered, per second.",
                query(
                    rate("neurona_session_steps_total", VERSION, "version"), "version {{version}}"
                ),
                unit="ops",
                width=12,
            ),
            time_series(
                "Sessions ended by the server",
                "idle: without a step for session_idle_timeout_s. full: ended for a new one; "
                "raise max_sessions, or add replicas. unloaded: its version was replaced.",
                query(rate("neurona_sessions_evicted_total", VERSION, "reason"), "{{reason}}"),
                unit="ops",
                width=12,
            ),
        ],
    )


def _shadow() -> Row:
    compared = f'{VERSION}, outcome=~"equal|same_class|different"'
    agreeing = f'{VERSION}, outcome=~"equal|same_class"'
    return Row(
        "Shadow",
        [
            time_series(
                "Shadow requests by outcome",
                "equal, same_class (other numbers, the same label) and different compare the "
                "shadow's response with the one sent. rejected: the shadow had no capacity, which "
                "does not affect callers. Empty: no shadow.",
                query(rate("neurona_shadow_requests_total", VERSION, "outcome"), "{{outcome}}"),
                unit="reqps",
                stacked=True,
                width=12,
            ),
            time_series(
                "Shadow agreement",
                "Share of the compared responses that are equal or of the same class. You decide "
                "which agreement is enough to promote the shadow.",
                query(
                    ratio(
                        rate("neurona_shadow_requests_total", agreeing, "version"),
                        rate("neurona_shadow_requests_total", compared, "version"),
                    ),
                    "version {{version}}",
                ),
                unit="percentunit",
                minimum=None,
                maximum=1,
                width=12,
            ),
        ],
    )


def _loading() -> Row:
    states = {
        "0": ("loading", "blue"),
        "1": ("ready", "green"),
        "2": ("draining", "yellow"),
        "3": ("failed", "red"),
        "4": ("unloaded", "text"),
    }
    state_number = " or ".join(
        f'{number} * max by (version) (neurona_version_state{{{VERSION}, state="{state}"}})'
        for number, (state, _) in states.items()
    )
    return Row(
        "Versions and loads",
        [
            state_timeline(
                "State of each version",
                "If processes differ, the state that comes first in this order: loading, ready, "
                "draining, failed, unloaded.",
                query(state_number, "version {{version}}"),
                states=states,
            ),
            time_series(
                "Time loading",
                "How long a version has been loading. Beyond a few minutes it is stuck: find its "
                "last line in the log.",
                query(
                    f"max by (version) (neurona_version_loading_seconds{{{VERSION}}}) "
                    f"or 0 * max by (version) (neurona_version_state{{{VERSION}}})",
                    "version {{version}}",
                ),
                unit="s",
                limit=300,
                width=12,
            ),
            time_series(
                "Mean load duration",
                "The whole load, and the warm-up in it. Mostly warm-up: many batch sizes to "
                "measure, or slow runs.",
                query(
                    f"sum(neurona_load_duration_seconds_sum{{{MODEL}}}) / "
                    f"sum(neurona_load_duration_seconds_count{{{MODEL}}})",
                    "load and warm-up",
                ),
                query(
                    f"sum(neurona_warm_up_duration_seconds_sum{{{MODEL}}}) / "
                    f"sum(neurona_warm_up_duration_seconds_count{{{MODEL}}})",
                    "warm-up",
                ),
                unit="s",
                width=12,
            ),
            time_series(
                "Loads by outcome",
                "Since the processes started. failed: Models.List and the log have the reason; "
                "the previous version keeps serving.",
                query(f"sum by (outcome) (neurona_loads_total{{{MODEL}}})", "{{outcome}}"),
                unit="none",
                width=12,
            ),
        ],
    )


def _devices() -> Row:
    return Row(
        "Devices",
        [
            time_series(
                "Graph nodes by provider",
                "Nodes on the CPU in a model that runs on a GPU: data is copied back and forth, "
                "which may cost more than the node itself.",
                query(
                    f"max by (version, provider) (neurona_model_nodes{{{VERSION}}})",
                    "{{provider}}, version {{version}}",
                ),
                unit="none",
                width=8,
            ),
            time_series(
                "Runs without enough memory",
                "Their batches were halved and run again. Many: smaller max_batch_rows, or fewer "
                "models on the device.",
                query(
                    rate("neurona_out_of_memory_runs_total", VERSION, "version"),
                    "version {{version}}",
                ),
                unit="none",
                width=8,
            ),
            time_series(
                "How batches run on a GPU",
                "The fastest methods for its batch sizes when the version was loaded.",
                query(
                    f"max by (version, device, method) (neurona_model_run_method{{{VERSION}}})",
                    "{{method}}, {{device}}, version {{version}}",
                ),
                unit="none",
                width=8,
            ),
            time_series(
                "Batches by GPU",
                "A model on several GPUs runs each batch on the least loaded one.",
                query(rate("neurona_device_runs_total", VERSION, "device"), "{{device}}"),
                unit="none",
                width=8,
            ),
            time_series(
                "Run time by GPU",
                "Mean of a batch, waiting for its copies and for others on the GPU included. One "
                "GPU above the rest: see its power and what else runs there.",
                query(
                    f"{rate('neurona_device_run_seconds_total', VERSION, 'device')} / "
                    f"{rate('neurona_device_runs_total', VERSION, 'device')}",
                    "{{device}}",
                ),
                unit="s",
                width=8,
            ),
        ],
    )
