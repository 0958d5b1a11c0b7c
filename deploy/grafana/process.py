"""Neurona / One process: what a replica takes, and from whom."""

from board import EVERY, PROCESSES, Row, dashboard
from panels import Json, Query, number, over_time, steps
from promql import rate
from variables import datasource, instance, job


def process() -> Json:
    return dashboard(
        "One process",
        "One replica: CPU, memory, garbage collection, descriptors, streams, the transport, GPUs.",
        [datasource(), job(), instance("one")],
        [_now(), _cpu_and_memory(), _transport(), _python(), _gpu()],
    )


def _now() -> Row:
    return Row(
        "Now",
        [
            number(
                "Health",
                "Whether health of the server says SERVING.",
                Query(f"max(neurona_serving{{{PROCESSES}}})"),
                unit="none",
                thresholds=steps((None, "red"), (1, "green")),
                names={"0": {"text": "NOT_SERVING"}, "1": {"text": "SERVING"}},
                width=3,
            ),
            number(
                "Runs for",
                "Since its start. Small again and again: it is restarted, or it dies.",
                Query(f"time() - max(process_start_time_seconds{{{PROCESSES}}})"),
                unit="s",
                thresholds=steps((None, "orange"), (600, "blue")),
                width=3,
            ),
            number(
                "Transport",
                "cygrpc: the fast one. aio: grpcio's public one, several times slower, taken since "
                "the other did not pass its test at the start; the log says why.",
                Query(
                    f"max by (transport) (neurona_transport_info{{{PROCESSES}}})", "{{transport}}"
                ),
                unit="none",
                thresholds=steps((None, "blue")),
                names={"1": {"text": "in use"}},
                width=3,
            ),
            number(
                "Workers started anew",
                "With several processes: those that had died within the last hour. The log says "
                "how. Empty with one process.",
                Query(f"sum(increase(neurona_process_restarts_total{{{PROCESSES}}}[1h]))"),
                unit="none",
                decimals=0,
                thresholds=steps((None, "green"), (1, "orange"), (3, "red")),
                width=3,
            ),
            number(
                "Version of Neurona",
                "And of what it stands on.",
                Query(
                    "max by (version, python, onnxruntime, grpcio) "
                    f"(neurona_build_info{{{PROCESSES}}})",
                    "{{version}}, Python {{python}}, ONNX Runtime {{onnxruntime}}, "
                    "grpcio {{grpcio}}",
                ),
                unit="none",
                thresholds=steps((None, "blue")),
                names={"1": {"text": "runs"}},
                width=6,
            ),
            number(
                "Scrape",
                "How long Prometheus waits for the page of metrics. Near its timeout (10 s by "
                "default): the process has no CPU left.",
                Query(f"max(scrape_duration_seconds{{{PROCESSES}}})"),
                unit="s",
                thresholds=steps((None, "green"), (1, "orange"), (5, "red")),
                width=3,
            ),
            number(
                "Open streams",
                "PredictStream and ModelStreamInfer calls under way.",
                Query(f"sum(neurona_open_streams{{{PROCESSES}}})"),
                unit="none",
                thresholds=steps((None, "blue")),
                width=3,
            ),
        ],
    )


def _cpu_and_memory() -> Row:
    return Row(
        "CPU and memory",
        [
            over_time(
                "CPU",
                "Cores in use. One Python takes about one; the others are runs. At the limit of "
                "the container it is throttled, and latencies grow in jumps.",
                Query(
                    f"sum(rate(process_cpu_seconds_total{{{PROCESSES}}}[{EVERY}]))",
                    "all",
                ),
                Query(
                    f"sum by (process) "
                    f"(rate(neurona_process_cpu_seconds_total{{{PROCESSES}}}[{EVERY}]))",
                    "worker {{process}}",
                ),
                unit="none",
            ),
            over_time(
                "Memory",
                "resident is what counts against the container's limit: near it, the process is "
                "killed. It holds the models, what runs need (arenas, which grow with the largest "
                "batch) and the requests. A line that climbs for days is a leak.",
                Query(f"sum(process_resident_memory_bytes{{{PROCESSES}}})", "resident"),
                Query(f"max(neurona_memory_limit_bytes{{{PROCESSES}}})", "limit"),
                Query(
                    f"sum by (process) (neurona_process_resident_memory_bytes{{{PROCESSES}}})",
                    "worker {{process}}",
                ),
                unit="bytes",
            ),
            over_time(
                "Time in runs by model",
                "Who takes the device: seconds of runs in each second.",
                Query(
                    rate("neurona_run_duration_seconds_sum", PROCESSES, "model"),
                    "{{model}}",
                ),
                unit="none",
                stacked=True,
            ),
        ],
    )


def _transport() -> Row:
    return Row(
        "Transport",
        [
            over_time(
                "Requests by how they ended",
                "Compare with the other processes: Linux and balancers spread connections, not "
                "calls, so that one may have much more to do.",
                Query(rate("neurona_requests_total", PROCESSES, "outcome"), "{{outcome}}"),
                unit="reqps",
                stacked=True,
            ),
            over_time(
                "Calls refused at the transport",
                "Before they reached a model, by reason.",
                Query(rate("neurona_rejected_calls_total", PROCESSES, "reason"), "{{reason}}"),
                unit="reqps",
            ),
            over_time(
                "File descriptors",
                "Each connection takes one. Near the most, no new connection is taken: raise the "
                "limit (ulimit -n), or look for callers that open a channel for each call.",
                Query(f"sum(process_open_fds{{{PROCESSES}}})", "open"),
                Query(f"max(process_max_fds{{{PROCESSES}}})", "the most"),
                unit="none",
                logarithmic=True,
            ),
        ],
    )


def _python() -> Row:
    return Row(
        "Python and its processes",
        [
            over_time(
                "Workers",
                "With several processes: those that serve, and those that start. Empty with one. "
                "starting for long: see its log, or the versions that load.",
                Query(f"sum by (state) (neurona_processes{{{PROCESSES}}})", "{{state}}"),
                unit="none",
                stacked=True,
            ),
            over_time(
                "Garbage collections",
                "By generation. What is there at the start is not looked at again; many of "
                "generation 2 under load make pauses.",
                Query(
                    rate("python_gc_collections_total", PROCESSES, "generation"),
                    "generation {{generation}}",
                ),
                unit="ops",
            ),
            over_time(
                "Objects collected",
                "Objects that referred to each other in rings. Many a request: somebody's code "
                "makes rings. Uncollectable ones are a leak.",
                Query(rate("python_gc_objects_collected_total", PROCESSES), "collected"),
                Query(
                    rate("python_gc_objects_uncollectable_total", PROCESSES),
                    "uncollectable",
                ),
                unit="ops",
            ),
            over_time(
                "Spans of traced requests",
                "sent to the collector, or lost since it was away or slow; nothing where traces "
                "are off (traces_endpoint).",
                Query(rate("neurona_trace_spans_total", PROCESSES, "outcome"), "{{outcome}}"),
                unit="ops",
            ),
        ],
    )


def _gpu() -> Row:
    return Row(
        "GPU (empty where there is none)",
        [
            over_time(
                "GPU in use",
                "Share of the time in which something ran. Low under load: batches are too small, "
                "or one Python cannot feed it.",
                Query(
                    f"max by (gpu) (neurona_gpu_utilization_ratio{{{PROCESSES}}})", "GPU {{gpu}}"
                ),
                unit="percentunit",
                high=1,
            ),
            over_time(
                "GPU memory",
                "Of everything on the GPU, other processes too. At the total, loads and large "
                "batches fail.",
                Query(
                    f"max by (gpu) (neurona_gpu_memory_used_bytes{{{PROCESSES}}})", "GPU {{gpu}}"
                ),
                Query(
                    f"max by (gpu) (neurona_gpu_memory_total_bytes{{{PROCESSES}}})",
                    "total, GPU {{gpu}}",
                ),
                unit="bytes",
            ),
            over_time(
                "GPU power",
                "At the card's limit its clock goes down, and runs get slower than predicted.",
                Query(f"max by (gpu) (neurona_gpu_power_watts{{{PROCESSES}}})", "GPU {{gpu}}"),
                unit="watt",
            ),
        ],
    )
