"""The dashboard "Process": what does a replica use, and for whom?"""

from grafana_foundation_sdk.models.dashboard import Dashboard
from layout import Row, dashboard, instance_variable, job_variable
from panels import query, stat, thresholds, time_series
from promql import PROCESSES, RATE_INTERVAL, rate


def process_dashboard() -> Dashboard:
    return dashboard(
        "Process",
        "One replica: CPU, memory, garbage collection, descriptors, streams, transport and GPUs.",
        [job_variable(), instance_variable(multiple=False)],
        [_current_state(), _cpu_and_memory(), _transport(), _python(), _gpus()],
    )


def _current_state() -> Row:
    return Row(
        "Now",
        [
            stat(
                "Health",
                "The health status of the whole server.",
                query(f"max(neurona_serving{{{PROCESSES}}})"),
                unit="none",
                colors=thresholds((None, "red"), (1, "green")),
                words={"0": "NOT_SERVING", "1": "SERVING"},
            ),
            stat(
                "Uptime",
                "Time since its start. Small again and again: it is being restarted, or it "
                "crashes.",
                query(f"time() - max(process_start_time_seconds{{{PROCESSES}}})"),
                unit="s",
                colors=thresholds((None, "orange"), (600, "blue")),
            ),
            stat(
                "Transport",
                "cygrpc: the fast one. aio: grpcio's public one, several times slower, used "
                "because the cygrpc transport failed its self-test at startup; the log has the "
                "reason.",
                query(
                    f"max by (transport) (neurona_transport_info{{{PROCESSES}}})", "{{transport}}"
                ),
                unit="none",
                colors=thresholds((None, "blue")),
                words={"1": "in use"},
            ),
            stat(
                "Worker restarts",
                "With several worker processes: how many died within the last hour and were "
                "restarted. The log has the reason. Empty with one process.",
                query(f"sum(increase(neurona_process_restarts_total{{{PROCESSES}}}[1h]))"),
                unit="none",
                decimals=0,
                colors=thresholds((None, "green"), (1, "orange"), (3, "red")),
            ),
            stat(
                "Version of Neurona",
                "The versions of Neurona, Python, ONNX Runtime and grpcio.",
                query(
                    "max by (version, python, onnxruntime, grpcio) "
                    f"(neurona_build_info{{{PROCESSES}}})",
                    "{{version}}, Python {{python}}, ONNX Runtime {{onnxruntime}}, "
                    "grpcio {{grpcio}}",
                ),
                unit="none",
                colors=thresholds((None, "blue")),
                words={"1": "running"},
                width=6,
            ),
            stat(
                "Scrape duration",
                "How long Prometheus waits for the metrics page. Near its timeout (10 s by "
                "default): the process has no CPU left.",
                query(f"max(scrape_duration_seconds{{{PROCESSES}}})"),
                unit="s",
                colors=thresholds((None, "green"), (1, "orange"), (5, "red")),
            ),
            stat(
                "Open streams",
                "PredictStream and ModelStreamInfer calls in flight.",
                query(f"sum(neurona_open_streams{{{PROCESSES}}})"),
                unit="none",
                colors=thresholds((None, "blue")),
            ),
        ],
    )


def _cpu_and_memory() -> Row:
    cpu = f"(rate(neurona_process_cpu_seconds_total{{{PROCESSES}}}[{RATE_INTERVAL}]))"
    return Row(
        "CPU and memory",
        [
            time_series(
                "CPU",
                "Cores in use. The Python code of a process takes up to about one; runs take the "
                "others. At the container's limit it is throttled, and latencies jump.",
                query(
                    f"sum(rate(process_cpu_seconds_total{{{PROCESSES}}}[{RATE_INTERVAL}]))", "all"
                ),
                query(f"sum by (process) {cpu}", "worker {{process}}"),
                unit="none",
                width=6,
            ),
            time_series(
                "Memory",
                "resident counts against the container's limit: at the limit the process is "
                "killed. It contains the models, the memory of runs (arenas, which grow with the "
                "largest batch) and the requests. A line that climbs for days is a leak.",
                query(f"sum(process_resident_memory_bytes{{{PROCESSES}}})", "resident"),
                query(f"max(neurona_memory_limit_bytes{{{PROCESSES}}})", "limit"),
                query(
                    f"sum by (process) (neurona_process_resident_memory_bytes{{{PROCESSES}}})",
                    "worker {{process}}",
                ),
                unit="bytes",
                width=6,
            ),
            time_series(
                "Run time per second by model",
                "Which model uses the device: seconds of runs in each second.",
                query(rate("neurona_run_duration_seconds_sum", PROCESSES, "model"), "{{model}}"),
                unit="none",
                stacked=True,
                width=6,
            ),
            time_series(
                "Stalls of the machine",
                "How often the process did not run though it was due, by the least seconds that "
                "took: throttled by a CPU limit, or others use the CPUs. Stalls near a latency "
                "objective make requests late that nothing else would have.",
                query(
                    f"max by (at_least) (neurona_stalls_per_second{{{PROCESSES}}})",
                    "at least {{at_least}} s",
                ),
                unit="none",
                logarithmic=True,
                width=6,
            ),
        ],
    )


def _transport() -> Row:
    return Row(
        "Transport",
        [
            time_series(
                "Requests by outcome",
                "Compare with the other processes: Linux and load balancers distribute "
                "connections, not calls, so one process may have much more to do.",
                query(rate("neurona_requests_total", PROCESSES, "outcome"), "{{outcome}}"),
                unit="reqps",
                stacked=True,
            ),
            time_series(
                "Calls rejected before a model",
                "Calls rejected before they reached a model, by reason.",
                query(rate("neurona_rejected_calls_total", PROCESSES, "reason"), "{{reason}}"),
                unit="reqps",
            ),
            time_series(
                "Connections",
                "Open ones, and those that were closed for max_buffered_bytes (buffers_full), "
                "max_connections_per_address (per_address) or max_connections (never_called).",
                query(f"sum(neurona_connections{{{PROCESSES}}})", "open"),
                query(
                    rate("neurona_closed_connections_total", PROCESSES, "reason"),
                    "{{reason}} per second",
                ),
                unit="none",
                logarithmic=True,
            ),
            time_series(
                "Buffered bytes",
                "Large or slow messages that are being received, wait or are being sent. Near "
                "max_buffered_bytes calls are rejected: look for callers with slow networks, or "
                "that do not read their responses.",
                query(f"sum(neurona_buffered_bytes{{{PROCESSES}}})", "buffered"),
                unit="bytes",
            ),
            time_series(
                "File descriptors",
                "Each connection uses one. At the limit no new connection is accepted: raise the "
                "limit (ulimit -n), or look for callers that open a channel for each call.",
                query(f"sum(process_open_fds{{{PROCESSES}}})", "open"),
                query(f"max(process_max_fds{{{PROCESSES}}})", "limit"),
                unit="none",
                logarithmic=True,
            ),
        ],
    )


def _python() -> Row:
    return Row(
        "Python and worker processes",
        [
            time_series(
                "Workers",
                "With several worker processes: how many are serving and how many are starting. "
                "Empty with one process. starting for long: see its log, or the loading versions.",
                query(f"sum by (state) (neurona_processes{{{PROCESSES}}})", "{{state}}"),
                unit="none",
                stacked=True,
            ),
            time_series(
                "Garbage collections",
                "By generation. Objects that exist at startup are excluded from collections; many "
                "of generation 2 under load cause pauses.",
                query(
                    rate("python_gc_collections_total", PROCESSES, "generation"),
                    "generation {{generation}}",
                ),
                unit="ops",
            ),
            time_series(
                "Collected objects",
                "Objects in reference cycles. Many for each request: some code creates cycles. "
                "Uncollectable ones are a leak.",
                query(rate("python_gc_objects_collected_total", PROCESSES), "collected"),
                query(rate("python_gc_objects_uncollectable_total", PROCESSES), "uncollectable"),
                unit="ops",
            ),
            time_series(
                "Spans of traced requests",
                "sent: to the collector. lost: the collector was unavailable or slow. Empty where "
                "tracing is off (traces_endpoint).",
                query(rate("neurona_trace_spans_total", PROCESSES, "outcome"), "{{outcome}}"),
                unit="ops",
            ),
            time_series(
                "Log lines not written",
                "unread: standard error was not read in time; look at what collects the log. "
                "repeated: similar lines, which callers can cause; the log has their number.",
                query(rate("neurona_log_lines_dropped_total", PROCESSES, "reason"), "{{reason}}"),
                unit="ops",
            ),
        ],
    )


def _gpus() -> Row:
    return Row(
        "GPU (empty without one)",
        [
            time_series(
                "GPU utilization",
                "Share of the time in which a kernel was running. Low under load: batches are too "
                "small, or one Python process cannot keep it busy.",
                query(
                    f"max by (gpu) (neurona_gpu_utilization_ratio{{{PROCESSES}}})", "GPU {{gpu}}"
                ),
                unit="percentunit",
                maximum=1,
            ),
            time_series(
                "GPU memory",
                "Of all processes on the GPU, other programs included. At the total, loads and "
                "large batches fail.",
                query(
                    f"max by (gpu) (neurona_gpu_memory_used_bytes{{{PROCESSES}}})", "GPU {{gpu}}"
                ),
                query(
                    f"max by (gpu) (neurona_gpu_memory_total_bytes{{{PROCESSES}}})",
                    "total, GPU {{gpu}}",
                ),
                unit="bytes",
            ),
            time_series(
                "GPU power",
                "At the card's power limit its clock slows down, and runs take longer than "
                "predicted.",
                query(f"max by (gpu) (neurona_gpu_power_watts{{{PROCESSES}}})", "GPU {{gpu}}"),
                unit="watt",
            ),
            time_series(
                "GPU batches in progress",
                "On the GPUs that models are loaded on: while one runs, another one is copied.",
                query(
                    f"sum by (device) (neurona_device_runs_in_progress{{{PROCESSES}}}) "
                    "* on (device) group_left (name) "
                    f"max by (device, name) (neurona_device_info{{{PROCESSES}}})",
                    "{{device}}, {{name}}",
                ),
                unit="none",
            ),
            time_series(
                "Lost GPUs",
                "1: the GPU failed while it was in use. Its models run elsewhere or not at all "
                "until the process starts again.",
                query(f"max by (device) (neurona_device_lost{{{PROCESSES}}})", "{{device}}"),
                unit="none",
            ),
        ],
    )
