"""Rows of the dashboard of one model that are about its runs and what they take."""

from board import MODEL, VERSION, Row
from panels import Query, over_time, spread, states
from promql import mean, quantile, rate, share


def batching() -> Row:
    padding = rate("neurona_padding_rows_total", VERSION, "version")
    rows = rate("neurona_rows_total", VERSION, "version")
    ratio = "neurona_run_predicted_ratio"
    return Row(
        "Runs and batches",
        [
            spread(
                "Rows in a run",
                "Under load they should be near the batch limit. Always 1: the model is not "
                "batched (its log line at the load says why), or requests come one by one.",
                Query(rate("neurona_batch_rows_bucket", VERSION, "le"), "{{le}}"),
                unit="none",
                width=6,
            ),
            over_time(
                "Rows and requests in a run",
                "Means, and the rows that a batch is cut with at the most.",
                Query(mean("neurona_batch_rows", VERSION, "version"), "rows, version {{version}}"),
                Query(
                    mean("neurona_batch_requests", VERSION, "version"),
                    "requests, version {{version}}",
                ),
                Query(
                    f"min by (version) (neurona_batch_limit_rows{{{VERSION}}})",
                    "limit, version {{version}}",
                ),
                unit="none",
                width=6,
            ),
            over_time(
                "Padding",
                "Share of the rows that ran for nobody, to fill a size that the device knows. "
                "Above 30 % for long: callers send sizes just above a rung; see the runbook.",
                Query(
                    f"{share(padding, f'({rows} + ({padding} or {rows} * 0))')}",
                    "version {{version}}",
                ),
                unit="percentunit",
                high=1,
                limit=0.3,
                width=6,
            ),
            over_time(
                "Real by predicted run time",
                "1 is a perfect foresight, which admission and batch sizes rest on. p90 above 2 "
                "for long: something else takes the CPU or GPU, or run times hang on the data.",
                Query(quantile(0.5, ratio, VERSION), "p50"),
                Query(quantile(0.9, ratio, VERSION), "p90"),
                unit="none",
                limit=2,
                width=6,
            ),
            over_time(
                "Predicted run time by rows",
                "The measured cost of a run. Flat on the left: more rows a run are for free there.",
                Query(
                    f"max by (version, rows) (neurona_run_predicted_seconds{{{VERSION}}})",
                    "{{rows}} rows, version {{version}}",
                ),
                unit="s",
                logarithmic=True,
                width=6,
            ),
            over_time(
                "Mean run by part",
                "join: the rows of its requests into one array. run: ONNX Runtime. split: to each "
                "request its rows and its answer. Much join and split: many small requests, or "
                "large tensors.",
                Query(mean("neurona_join_duration_seconds", VERSION), "join"),
                Query(
                    f"clamp_min({mean('neurona_run_duration_seconds', VERSION)} - "
                    f"({mean('neurona_join_duration_seconds', VERSION)}), 0)",
                    "run",
                ),
                Query(mean("neurona_split_duration_seconds", VERSION), "split"),
                unit="s",
                stacked=True,
                width=6,
            ),
            over_time(
                "Time in runs",
                "Seconds of runs in each second. At the number of instances there is no idle "
                "time left. inline: 1 while runs are so short that the thread that reads requests "
                "does them itself.",
                Query(
                    rate("neurona_run_duration_seconds_sum", VERSION, "version"),
                    "version {{version}}",
                ),
                Query(
                    f"max by (version) (neurona_inline{{{VERSION}}})",
                    "inline, version {{version}}",
                ),
                unit="none",
                width=6,
            ),
            over_time(
                "Runs stopped early",
                "Since nobody waited any more: callers went away, or their deadline passed. Many: "
                "deadlines are shorter than runs.",
                Query(
                    rate("neurona_terminated_runs_total", VERSION, "version"),
                    "version {{version}}",
                ),
                unit="ops",
                width=6,
            ),
        ],
    )


def shadow() -> Row:
    compared = f'{VERSION}, outcome=~"equal|same_class|different"'
    same = f'{VERSION}, outcome=~"equal|same_class"'
    return Row(
        "Shadow",
        [
            over_time(
                "Shadow's answers by how they compare",
                "same_class: other numbers, the same label. refused: the shadow had no room, "
                "which takes nothing from callers. Empty: no shadow.",
                Query(rate("neurona_shadow_requests_total", VERSION, "outcome"), "{{outcome}}"),
                unit="reqps",
                stacked=True,
                width=12,
            ),
            over_time(
                "Shadow agrees",
                "Share of the compared answers that are equal or of the same class. What is good "
                "enough to promote the shadow, you know.",
                Query(
                    share(
                        rate("neurona_shadow_requests_total", same, "version"),
                        rate("neurona_shadow_requests_total", compared, "version"),
                    ),
                    "version {{version}}",
                ),
                unit="percentunit",
                low=None,
                high=1,
                width=12,
            ),
        ],
    )


def loading() -> Row:
    state = {
        "0": {"text": "loading", "color": "blue"},
        "1": {"text": "ready", "color": "green"},
        "2": {"text": "draining", "color": "yellow"},
        "3": {"text": "failed", "color": "red"},
        "4": {"text": "unloaded", "color": "text"},
    }
    numbered = " or ".join(
        f'{number} * max by (version) (neurona_version_state{{{VERSION}, state="{one["text"]}"}})'
        for number, one in state.items()
    )
    return Row(
        "Versions and loads",
        [
            states(
                "State of each version",
                "As processes see it; if they differ, the state that comes first of loading, "
                "ready, draining, failed, unloaded.",
                Query(numbered, "version {{version}}"),
                names=state,
            ),
            over_time(
                "Loading now",
                "How long a version has been loading. Beyond a few minutes it is stuck: look for "
                "its last line in the log.",
                Query(
                    f"max by (version) (neurona_version_loading_seconds{{{VERSION}}}) "
                    f"or 0 * max by (version) (neurona_version_state{{{VERSION}}})",
                    "version {{version}}",
                ),
                unit="s",
                limit=300,
                width=12,
            ),
            over_time(
                "Seconds of a load",
                "Means: all of it, and the warm-up in it. Most in the warm-up: many sizes to "
                "measure, or slow runs.",
                Query(
                    f"sum(neurona_load_duration_seconds_sum{{{MODEL}}}) / "
                    f"sum(neurona_load_duration_seconds_count{{{MODEL}}})",
                    "load and warm-up",
                ),
                Query(
                    f"sum(neurona_warm_up_duration_seconds_sum{{{MODEL}}}) / "
                    f"sum(neurona_warm_up_duration_seconds_count{{{MODEL}}})",
                    "warm-up",
                ),
                unit="s",
                width=12,
            ),
            over_time(
                "Loads by how they ended",
                "Since the processes started. failed: the reason stands in Models.List and the "
                "log; what served before serves on.",
                Query(f"sum by (outcome) (neurona_loads_total{{{MODEL}}})", "{{outcome}}"),
                unit="none",
                width=12,
            ),
        ],
    )


def devices() -> Row:
    return Row(
        "Devices",
        [
            over_time(
                "Nodes of the graph by provider",
                "Nodes on the CPU in a model that runs on a GPU: data goes to and fro, which "
                "may cost more than the node.",
                Query(
                    f"max by (version, provider) (neurona_model_nodes{{{VERSION}}})",
                    "{{provider}}, version {{version}}",
                ),
                unit="none",
                width=24,
            ),
        ],
    )
