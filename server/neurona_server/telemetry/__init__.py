"""Metrics, logs and traces of the server.

metrics declares every Prometheus series and updates those of each model version histogram request
and queue durations, cheap to record statistics runs by their number of rows, for ModelStatistics
collectors series computed at each scrape: versions, loads, GPUs, the memory limit logs log formats,
and the capture of what libraries write to standard error failure_log at most one log line a minute
for each kind of failure trace the interfaces between requests, batches and their traces spans
OpenTelemetry spans of calls and batches span_processor queues finished spans without blocking a
request span_exporter sends spans to a collector
"""
