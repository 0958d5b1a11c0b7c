// Computes rates and percentiles from samples.

/** Collects the values of one scrape that the page shows, by version of each model. */
function takeSnapshot(samples, at) {
  const samplesOf = (name) => samples.get(name) ?? [];
  const firstValue = (name) => samplesOf(name)[0]?.value;
  const sum = (name) => samplesOf(name).reduce((total, { value }) => total + value, 0);
  const versions = new Map();
  const versionOf = ({ model, version: number }) => {
    const key = `${model}\n${number}`;
    let version = versions.get(key);
    if (!version) {
      version = {
        key, model, version: number, state: "", labels: [], outcomes: new Map(), bounds: [], counts: [],
        rows: 0, runs: 0, queue: 0, oldest: 0, sessions: 0, steps: 0, padding: 0, problem: false, degraded: false, provider: "",
      };
      versions.set(key, version);
    }
    return version;
  };
  for (const { labels, value } of samplesOf("neurona_version_state")) if (value) versionOf(labels).state = labels.state;
  for (const { labels } of samplesOf("neurona_version_label")) versionOf(labels).labels.push(labels.label);
  for (const { labels, value } of samplesOf("neurona_version_problem")) versionOf(labels).problem = value > 0;
  for (const { labels, value } of samplesOf("neurona_version_share_ratio")) versionOf(labels).share = value;
  for (const { labels, value } of samplesOf("neurona_version_loading_seconds")) versionOf(labels).loading = value;
  for (const { labels } of samplesOf("neurona_model_info")) versionOf(labels).provider = labels.provider;
  for (const { labels, value } of samplesOf("neurona_model_degraded")) versionOf(labels).degraded = value > 0;
  for (const { labels, value } of samplesOf("neurona_requests_total")) versionOf(labels).outcomes.set(labels.outcome, value);
  for (const { labels, value } of samplesOf("neurona_request_duration_seconds_bucket")) {
    const version = versionOf(labels);
    version.bounds.push(parseValue(labels.le));
    version.counts.push(value);
  }
  for (const { labels, value } of samplesOf("neurona_batch_rows_sum")) versionOf(labels).rows = value;
  for (const { labels, value } of samplesOf("neurona_batch_rows_count")) versionOf(labels).runs = value;
  for (const { labels, value } of samplesOf("neurona_queue_rows")) versionOf(labels).queue = value;
  for (const { labels, value } of samplesOf("neurona_queue_oldest_seconds")) versionOf(labels).oldest = value;
  for (const { labels, value } of samplesOf("neurona_latency_objective_seconds")) versionOf(labels).objective = value;
  for (const { labels, value } of samplesOf("neurona_objective_met_ratio")) versionOf(labels).met = value;
  for (const { labels, value } of samplesOf("neurona_sessions_open")) versionOf(labels).sessions = value;
  for (const { labels, value } of samplesOf("neurona_sequence_steps_total")) versionOf(labels).steps = value;
  for (const { labels, value } of samplesOf("neurona_sequence_padding_steps_total")) versionOf(labels).padding = value;
  const processes = new Map(samplesOf("neurona_processes").map(({ labels, value }) => [labels.state, value]));
  return {
    at,
    versions,
    started: firstValue("process_start_time_seconds"),
    cpu: firstValue("process_cpu_seconds_total"),
    memory: firstValue("process_resident_memory_bytes"),
    streams: firstValue("neurona_open_streams") ?? 0,
    rejected: sum("neurona_rejected_calls_total"),
    build: samplesOf("neurona_build_info")[0]?.labels,
    processes,
    gpus: takeGpus(samplesOf),
  };
}

function takeGpus(samplesOf) {
  const gpus = new Map();
  for (const name of ["utilization_ratio", "memory_used_bytes", "memory_total_bytes", "power_watts"]) {
    for (const { labels, value } of samplesOf(`neurona_gpu_${name}`)) {
      if (!gpus.has(labels.gpu)) gpus.set(labels.gpu, {});
      gpus.get(labels.gpu)[name] = value;
    }
  }
  return gpus;
}

/** Changes of one version between two snapshots. It may be new, or its counters may have restarted at zero. */
function compare(now, then, seconds) {
  const increase = (value, before) => (before === undefined || before > value ? value : value - before);
  const outcomes = new Map();
  for (const [outcome, value] of now.outcomes) outcomes.set(outcome, increase(value, then?.outcomes.get(outcome)));
  const restarted = then && now.counts.some((count, i) => count < (then.counts[i] ?? 0));
  const counts = now.counts.map((count, i) => count - (restarted ? 0 : then?.counts[i] ?? 0));
  const runs = increase(now.runs, then?.runs);
  const total = [...outcomes.values()].reduce((a, b) => a + b, 0);
  const errors = new Map([...outcomes].filter(([outcome, n]) => outcome !== "ok" && n > 0));
  return {
    seconds, total, errors, bounds: now.bounds, counts, runs,
    rows: increase(now.rows, then?.rows),
    steps: increase(now.steps, then?.steps),
    padding: increase(now.padding, then?.padding),
    failed: [...errors.values()].reduce((a, b) => a + b, 0),
  };
}

/** Adds the changes of several versions up. All have the same buckets. */
function addUp(parts) {
  const sum = { total: 0, failed: 0, runs: 0, rows: 0, errors: new Map(), bounds: [], counts: [] };
  for (const part of parts) {
    for (const name of ["total", "failed", "runs", "rows"]) sum[name] += part[name];
    for (const [outcome, n] of part.errors) sum.errors.set(outcome, (sum.errors.get(outcome) ?? 0) + n);
    if (part.bounds.length) sum.bounds = part.bounds;
    part.counts.forEach((count, i) => (sum.counts[i] = (sum.counts[i] ?? 0) + count));
  }
  return sum;
}

/** Interpolates linearly inside a bucket, as PromQL's histogram_quantile. undefined without observations. */
function quantile(q, { bounds, counts }) {
  const total = counts.at(-1);
  if (!total) return undefined;
  const rank = q * total;
  const place = counts.findIndex((count) => count >= rank);
  if (bounds[place] === Infinity) return bounds[place - 1];
  const below = place ? counts[place - 1] : 0;
  const from = place ? bounds[place - 1] : 0;
  return from + ((bounds[place] - from) * (rank - below)) / (counts[place] - below);
}
