// Polls the server, and shows its metrics.

const NAMES = [
  "neurona_version_state", "neurona_version_label", "neurona_version_problem",
  "neurona_version_share_ratio", "neurona_version_loading_seconds", "neurona_model_info",
  "neurona_model_degraded", "neurona_requests_total", "neurona_request_duration_seconds_bucket",
  "neurona_batch_rows_sum", "neurona_batch_rows_count", "neurona_queue_rows", "neurona_queue_oldest_seconds",
  "neurona_latency_objective_seconds", "neurona_objective_met_ratio",
  "neurona_sessions_open", "neurona_sequence_steps_total", "neurona_sequence_padding_steps_total",
  "neurona_processes", "neurona_build_info", "neurona_open_streams", "neurona_rejected_calls_total",
  "process_start_time_seconds", "process_cpu_seconds_total", "process_resident_memory_bytes",
  "neurona_gpu_utilization_ratio", "neurona_gpu_memory_used_bytes", "neurona_gpu_memory_total_bytes",
  "neurona_gpu_power_watts",
];
const PATH = `metrics?${NAMES.map((name) => `name[]=${name}`).join("&")}`;
const RESPONSE_TIMEOUT = 10; // seconds to wait for a response
const RECONNECTED_NOTICE = 10; // seconds for which the notice of a reconnection is shown

const byId = (id) => document.getElementById(id);
const snapshots = new Snapshots();
const lines = new Lines();
const table = new Table(document.querySelector("table"), () => showTable());
const page = { figures: [], parts: [], lostSince: 0, reconnectedAt: -Infinity };

async function fetchSnapshot() {
  const signal = AbortSignal.timeout(RESPONSE_TIMEOUT * 1000);
  const health = await fetch("healthz", { signal, cache: "no-store" });
  const state = (await health.text()).trim();
  const response = await fetch(PATH, { signal, cache: "no-store" });
  if (!response.ok) throw new Error(`status ${response.status}`);
  const text = await response.text();
  return { state, snapshot: takeSnapshot(parseExposition(text), performance.now() / 1000) };
}

function showSnapshot({ state, snapshot }) {
  const restarted = snapshots.add(snapshot);
  if (page.lostSince || restarted) {
    page.reconnectedAt = snapshot.at;
    showNotice(restarted ? "Reconnected: the server was restarted, and its counters began at zero." : "Reconnected.", "good");
  } else if (snapshot.at - page.reconnectedAt >= RECONNECTED_NOTICE) {
    showNotice("");
  }
  page.lostSince = 0;
  document.body.classList.remove("lost");
  showState(state, snapshot);
  computeFigures();
  showTiles();
  showTable();
}

function showLoss() {
  if (!page.lostSince) page.lostSince = Date.now();
  document.body.classList.add("lost");
  lines.gap();
  const since = new Date(page.lostSince).toLocaleTimeString("en-GB");
  showNotice(`No response since ${since}. Showing the last known values; retrying every ${PERIOD} seconds.`, "bad");
  byId("state").dataset.kind = "bad";
  setText(byId("state"), "unreachable");
}

function showNotice(text, kind = "") {
  const notice = byId("notice");
  notice.hidden = !text;
  notice.dataset.kind = kind;
  setText(notice, text);
}

function showState(state, snapshot) {
  const kinds = { SERVING: "good", STARTING: "busy" };
  byId("state").dataset.kind = kinds[state] ?? "bad";
  setText(byId("state"), state.toLowerCase().replace("_", " "));
  const facts = [];
  const { build, started, processes } = snapshot;
  if (processes.size) {
    const [serving, starting] = [processes.get("serving") ?? 0, processes.get("starting") ?? 0];
    facts.push(`${serving} processes serving${starting ? `, ${starting} starting` : ""}`);
  }
  if (started) facts.push(`up ${showSeconds(Math.max(0, Date.now() / 1000 - started))}`);
  if (build && build.version !== "unknown") facts.push(`version ${build.version}`);
  if (build) facts.push(`ONNX Runtime ${build.onnxruntime}`);
  setText(byId("facts"), facts.join(" · "));
}

function computeFigures() {
  const { now, then, before } = snapshots;
  const seconds = now.at - then.at;
  const points = new Map();
  page.figures = [];
  page.parts = [];
  const recent = [];
  for (const [key, version] of now.versions) {
    const part = compare(version, then.versions.get(key), seconds);
    page.parts.push(part);
    if (before) recent.push(compare(version, before.versions.get(key), now.at - before.at));
    if (before) points.set(key, recent.at(-1).total / recent.at(-1).seconds);
    if (!version.model) continue; // requests for unknown models
    page.figures.push({
      ...version, ...part,
      hasRequests: [...version.outcomes.values()].some((n) => n > 0),
      rate: seconds ? part.total / seconds : NaN,
      errorRate: seconds ? part.failed / seconds : NaN,
      p50: quantile(0.5, part),
      p99: quantile(0.99, part),
      batch: part.runs ? part.rows / part.runs : undefined,
    });
  }
  if (!before) return;
  const last = addUp(recent);
  const period = now.at - before.at;
  points.set("requests", last.total / period);
  points.set("errors", last.failed / period);
  points.set("latency", quantile(0.99, last));
  points.set("queue", page.figures.reduce((sum, { queue }) => sum + queue, 0));
  points.set("cpu", Math.max(0, now.cpu - before.cpu) / period);
  lines.add(points);
}

function showTiles() {
  const { now, then } = snapshots;
  const seconds = now.at - then.at;
  const sum = addUp(page.parts);
  const per = (value) => (seconds ? value / seconds : NaN);
  const unknown = now.versions.get("\n");
  const unresolved = unknown ? compare(unknown, then.versions.get("\n"), seconds).total : 0;
  const rejected = Math.max(0, now.rejected - then.rejected);
  const notes = [];
  if (unresolved) notes.push(`${showRate(per(unresolved))}/s for unknown models`);
  if (rejected) notes.push(`${showRate(per(rejected))}/s rejected`);
  if (now.streams) notes.push(`${showCount(now.streams)} open streams`);
  const sessions = page.figures.reduce((total, figure) => total + figure.sessions, 0);
  if (sessions) notes.push(`${showCount(sessions)} open ${sessions === 1 ? "session" : "sessions"}`);
  const waiting = page.figures.reduce((total, { queue }) => total + queue, 0);
  const oldest = Math.max(0, ...page.figures.map((figure) => (figure.queue ? figure.oldest : 0)));
  const p50 = quantile(0.5, sum);
  tile("requests", showRate(per(sum.total)), "/s", notes.join(" · "));
  tile("errors", showRate(per(sum.failed)), "/s", sum.failed ? showErrors(sum.errors, seconds) : "");
  tile("latency", showSeconds(quantile(0.99, sum)), "", p50 === undefined ? "" : `median ${showSeconds(p50)}`);
  tile("queue", showCount(waiting), waiting === 1 ? " row" : " rows", waiting ? `oldest ${showSeconds(oldest)}` : "");
  tile("cpu", showCpus(per(now.cpu - then.cpu)), " CPUs", now.memory ? `${showBytes(now.memory)} of memory` : "", "process");
  byId("tile-errors").classList.toggle("alarm", sum.failed > 0);
  showGpus(now.gpus);
  const hasRequests = [...now.versions.values()].some(({ outcomes }) => [...outcomes.values()].some((n) => n > 0));
  byId("quiet").hidden = hasRequests || page.figures.length === 0;
}

function tile(key, value, unit, note, id = key) {
  const [shown, remark, svg] = ["value", "note", null].map((name) => byId(`tile-${id}`).querySelector(name ? `.${name}` : "svg"));
  if (shown.childNodes.length !== 2) shown.replaceChildren(element("span"), element("small"));
  setText(shown.firstChild, value);
  setText(shown.lastChild, value === NO_VALUE ? "" : unit);
  setText(remark, note);
  drawLine(svg, lines.of(key), lines.places);
}

function showGpus(gpus) {
  byId("gpus").hidden = gpus.size === 0;
  const parts = [...gpus].map(([number, gpu]) => {
    const values = [];
    if ("utilization_ratio" in gpu) values.push(`${Math.round(gpu.utilization_ratio * 100)} % busy`);
    if ("memory_used_bytes" in gpu) values.push(`${showBytes(gpu.memory_used_bytes)} of ${showBytes(gpu.memory_total_bytes)}`);
    if ("power_watts" in gpu) values.push(`${Math.round(gpu.power_watts)} W`);
    return element("p", {}, element("strong", {}, `GPU ${number}`), ` ${values.join(" · ")}`);
  });
  byId("gpus").replaceChildren(...parts);
}

function showTable() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const only = byId("problems").checked;
  const matching = page.figures.filter((figure) => {
    if (only && !(figure.problem || figure.degraded || figure.failed)) return false;
    const text = [`${figure.model}/${figure.version}`, figure.state, figure.provider, ...figure.labels].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  table.show(matching, lines);
  const all = page.figures.length;
  setText(byId("shown"), matching.length === all ? `${all} ${all === 1 ? "version" : "versions"}` : `${matching.length} of ${all} versions`);
  byId("none").hidden = matching.length > 0;
  setText(byId("none"), all ? "No model matches the filter." : "No models yet.");
}

byId("filter").addEventListener("input", showTable);
byId("problems").addEventListener("change", showTable);

/** Polls again, after at least nine times the duration of the last poll: a slow server spends at most a tenth of its time on this page. */
async function poll() {
  const started = performance.now();
  if (!document.hidden) {
    const result = await fetchSnapshot().catch(() => null);
    if (result) showSnapshot(result);
    else showLoss();
  }
  setTimeout(poll, Math.max(PERIOD * 1000, 9 * (performance.now() - started)));
}

poll();
