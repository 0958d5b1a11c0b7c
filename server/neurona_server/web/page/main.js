// Looks at the server again and again, and shows what it has said.

const NAMES = [
  "neurona_version_state", "neurona_version_label", "neurona_version_problem",
  "neurona_version_share_ratio", "neurona_version_loading_seconds", "neurona_model_info",
  "neurona_model_degraded", "neurona_requests_total", "neurona_request_duration_seconds_bucket",
  "neurona_batch_rows_sum", "neurona_batch_rows_count", "neurona_queue_rows", "neurona_queue_oldest_seconds",
  "neurona_processes", "neurona_build_info", "neurona_open_streams", "neurona_rejected_calls_total",
  "process_start_time_seconds", "process_cpu_seconds_total", "process_resident_memory_bytes",
  "neurona_gpu_utilization_ratio", "neurona_gpu_memory_used_bytes", "neurona_gpu_memory_total_bytes",
  "neurona_gpu_power_watts",
];
const PATH = `metrics?${NAMES.map((name) => `name[]=${name}`).join("&")}`;
const PATIENCE = 10; // seconds for an answer
const BACK = 10; // seconds in which it is said that the server is back

const node = (id) => document.getElementById(id);
const snapshots = new Snapshots();
const lines = new Lines();
const table = new Table(document.querySelector("table"), () => showTable());
const page = { figures: [], parts: [], lost: 0, back: -Infinity };

async function look() {
  const signal = AbortSignal.timeout(PATIENCE * 1000);
  const health = await fetch("healthz", { signal, cache: "no-store" });
  const state = (await health.text()).trim();
  const answer = await fetch(PATH, { signal, cache: "no-store" });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  const text = await answer.text();
  return { state, snapshot: takeSnapshot(parseExposition(text), performance.now() / 1000) };
}

function heard({ state, snapshot }) {
  const restarted = snapshots.add(snapshot);
  if (page.lost || restarted) {
    page.back = snapshot.at;
    tell(restarted ? "The server is back: it was restarted, and counts anew." : "The server is back.", "good");
  } else if (snapshot.at - page.back >= BACK) {
    tell("");
  }
  page.lost = 0;
  document.body.classList.remove("lost");
  showState(state, snapshot);
  computeFigures();
  showTiles();
  showTable();
}

function lost() {
  if (!page.lost) page.lost = Date.now();
  document.body.classList.add("lost");
  lines.gap();
  const since = new Date(page.lost).toLocaleTimeString("en-GB");
  tell(`No answer since ${since}. What stands here is what was last heard; asking again every ${PERIOD} seconds.`, "bad");
  node("state").dataset.kind = "bad";
  say(node("state"), "lost");
}

function tell(text, kind = "") {
  const notice = node("notice");
  notice.hidden = !text;
  notice.dataset.kind = kind;
  say(notice, text);
}

function showState(state, snapshot) {
  const kinds = { SERVING: "good", STARTING: "busy" };
  node("state").dataset.kind = kinds[state] ?? "bad";
  say(node("state"), state.toLowerCase().replace("_", " "));
  const facts = [];
  const { build, started, processes } = snapshot;
  if (processes.size) {
    const [serving, starting] = [processes.get("serving") ?? 0, processes.get("starting") ?? 0];
    facts.push(`${serving} processes serve${starting ? `, ${starting} starting` : ""}`);
  }
  if (started) facts.push(`up ${showSeconds(Math.max(0, Date.now() / 1000 - started))}`);
  if (build && build.version !== "unknown") facts.push(`version ${build.version}`);
  if (build) facts.push(`ONNX Runtime ${build.onnxruntime}`);
  say(node("facts"), facts.join(" · "));
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
    if (!version.model) continue; // requests for models that there are not
    page.figures.push({
      ...version, ...part,
      asked: [...version.outcomes.values()].some((n) => n > 0),
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
  const refused = Math.max(0, now.refused - then.refused);
  const elsewhere = [];
  if (unresolved) elsewhere.push(`${showRate(per(unresolved))}/s for no model`);
  if (refused) elsewhere.push(`${showRate(per(refused))}/s refused`);
  if (now.streams) elsewhere.push(`${showCount(now.streams)} open streams`);
  const waiting = page.figures.reduce((total, { queue }) => total + queue, 0);
  const oldest = Math.max(0, ...page.figures.map((figure) => (figure.queue ? figure.oldest : 0)));
  const p50 = quantile(0.5, sum);
  tile("requests", showRate(per(sum.total)), "/s", elsewhere.join(" · "));
  tile("errors", showRate(per(sum.failed)), "/s", sum.failed ? showErrors(sum.errors, seconds) : "");
  tile("latency", showSeconds(quantile(0.99, sum)), "", p50 === undefined ? "" : `median ${showSeconds(p50)}`);
  tile("queue", showCount(waiting), waiting === 1 ? " row" : " rows", waiting ? `oldest ${showSeconds(oldest)}` : "");
  tile("cpu", showCpus(per(now.cpu - then.cpu)), " CPUs", now.memory ? `${showBytes(now.memory)} of memory` : "", "process");
  node("tile-errors").classList.toggle("alarm", sum.failed > 0);
  showGpus(now.gpus);
  const asked = [...now.versions.values()].some(({ outcomes }) => [...outcomes.values()].some((n) => n > 0));
  node("quiet").hidden = asked || page.figures.length === 0;
}

function tile(key, value, unit, note, id = key) {
  const [shown, remark, svg] = ["value", "note", null].map((name) => node(`tile-${id}`).querySelector(name ? `.${name}` : "svg"));
  if (shown.childNodes.length !== 2) shown.replaceChildren(element("span"), element("small"));
  say(shown.firstChild, value);
  say(shown.lastChild, value === NOTHING ? "" : unit);
  say(remark, note);
  drawLine(svg, lines.of(key), lines.places);
}

function showGpus(gpus) {
  node("gpus").hidden = gpus.size === 0;
  const parts = [...gpus].map(([number, gpu]) => {
    const told = [];
    if ("utilization_ratio" in gpu) told.push(`${Math.round(gpu.utilization_ratio * 100)} % busy`);
    if ("memory_used_bytes" in gpu) told.push(`${showBytes(gpu.memory_used_bytes)} of ${showBytes(gpu.memory_total_bytes)}`);
    if ("power_watts" in gpu) told.push(`${Math.round(gpu.power_watts)} W`);
    return element("p", {}, element("strong", {}, `GPU ${number}`), ` ${told.join(" · ")}`);
  });
  node("gpus").replaceChildren(...parts);
}

function showTable() {
  const words = node("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const only = node("problems").checked;
  const fitting = page.figures.filter((figure) => {
    if (only && !(figure.problem || figure.degraded || figure.failed)) return false;
    const text = [`${figure.model}/${figure.version}`, figure.state, figure.provider, ...figure.labels].join(" ").toLowerCase();
    return words.every((word) => text.includes(word));
  });
  table.show(fitting, lines);
  const all = page.figures.length;
  say(node("shown"), fitting.length === all ? `${all} ${all === 1 ? "version" : "versions"}` : `${fitting.length} of ${all} versions`);
  node("none").hidden = fitting.length > 0;
  say(node("none"), all ? "No model fits the filter." : "No model is known yet.");
}

node("filter").addEventListener("input", showTable);
node("problems").addEventListener("change", showTable);

/** A server that is slow to answer is asked less often: it has a tenth of its time for us. */
async function follow() {
  const begun = performance.now();
  if (!document.hidden) {
    const told = await look().catch(() => null);
    if (told) heard(told);
    else lost();
  }
  setTimeout(follow, Math.max(PERIOD * 1000, 9 * (performance.now() - begun)));
}

follow();
