// From samples to figures.

/** What a person reads of one page of metrics, by version of each model. */
function takeSnapshot(samples, at) {
  const all = (name) => samples.get(name) ?? [];
  const one = (name) => all(name)[0]?.value;
  const sum = (name) => all(name).reduce((total, { value }) => total + value, 0);
  const versions = new Map();
  const of = ({ model, version }) => {
    const key = `${model}\n${version}`;
    let found = versions.get(key);
    if (!found) {
      found = {
        key, model, version, state: "", labels: [], outcomes: new Map(), bounds: [], counts: [],
        rows: 0, runs: 0, queue: 0, oldest: 0, problem: false, degraded: false, provider: "",
      };
      versions.set(key, found);
    }
    return found;
  };
  for (const { labels, value } of all("neurona_version_state")) if (value) of(labels).state = labels.state;
  for (const { labels } of all("neurona_version_label")) of(labels).labels.push(labels.label);
  for (const { labels, value } of all("neurona_version_problem")) of(labels).problem = value > 0;
  for (const { labels, value } of all("neurona_version_share_ratio")) of(labels).share = value;
  for (const { labels, value } of all("neurona_version_loading_seconds")) of(labels).loading = value;
  for (const { labels } of all("neurona_model_info")) of(labels).provider = labels.provider;
  for (const { labels, value } of all("neurona_model_degraded")) of(labels).degraded = value > 0;
  for (const { labels, value } of all("neurona_requests_total")) of(labels).outcomes.set(labels.outcome, value);
  for (const { labels, value } of all("neurona_request_duration_seconds_bucket")) {
    const version = of(labels);
    version.bounds.push(parseValue(labels.le));
    version.counts.push(value);
  }
  for (const { labels, value } of all("neurona_batch_rows_sum")) of(labels).rows = value;
  for (const { labels, value } of all("neurona_batch_rows_count")) of(labels).runs = value;
  for (const { labels, value } of all("neurona_queue_rows")) of(labels).queue = value;
  for (const { labels, value } of all("neurona_queue_oldest_seconds")) of(labels).oldest = value;
  const processes = new Map(all("neurona_processes").map(({ labels, value }) => [labels.state, value]));
  return {
    at,
    versions,
    started: one("process_start_time_seconds"),
    cpu: one("process_cpu_seconds_total"),
    memory: one("process_resident_memory_bytes"),
    streams: one("neurona_open_streams") ?? 0,
    refused: sum("neurona_rejected_calls_total"),
    build: all("neurona_build_info")[0]?.labels,
    processes,
    gpus: takeGpus(all),
  };
}

function takeGpus(all) {
  const gpus = new Map();
  for (const name of ["utilization_ratio", "memory_used_bytes", "memory_total_bytes", "power_watts"]) {
    for (const { labels, value } of all(`neurona_gpu_${name}`)) {
      if (!gpus.has(labels.gpu)) gpus.set(labels.gpu, {});
      gpus.get(labels.gpu)[name] = value;
    }
  }
  return gpus;
}

/** What happened to one version between two snapshots. It may be new, or counted anew. */
function compare(now, then, seconds) {
  const grown = (value, before) => (before === undefined || before > value ? value : value - before);
  const outcomes = new Map();
  for (const [outcome, value] of now.outcomes) outcomes.set(outcome, grown(value, then?.outcomes.get(outcome)));
  const anew = then && now.counts.some((count, i) => count < (then.counts[i] ?? 0));
  const counts = now.counts.map((count, i) => count - (anew ? 0 : then?.counts[i] ?? 0));
  const runs = grown(now.runs, then?.runs);
  const total = [...outcomes.values()].reduce((a, b) => a + b, 0);
  const errors = new Map([...outcomes].filter(([outcome, n]) => outcome !== "ok" && n > 0));
  return {
    seconds, total, errors, bounds: now.bounds, counts, runs,
    rows: grown(now.rows, then?.rows),
    failed: [...errors.values()].reduce((a, b) => a + b, 0),
  };
}

/** Of several: sums. All have the same buckets. */
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

/** As PromQL's histogram_quantile: linear inside a bucket. undefined if there was none. */
function quantile(q, { bounds, counts }) {
  const all = counts.at(-1);
  if (!all) return undefined;
  const rank = q * all;
  const place = counts.findIndex((count) => count >= rank);
  if (bounds[place] === Infinity) return bounds[place - 1];
  const below = place ? counts[place - 1] : 0;
  const from = place ? bounds[place - 1] : 0;
  return from + ((bounds[place] - from) * (rank - below)) / (counts[place] - below);
}
