// Answers as a person wants them: bars, values with their intervals, forecasts, tables.

import { lineChart } from "./charts.js";
import { element, formatMs, formatNumber } from "./dom.js";
import { groupValues } from "./forms.js";
import { countOf, decodeTensor, nest, toBase64, TYPES } from "./tensors.js";

const MOST_CELLS = 600;
const MOST_COLUMNS = 24;
const MOST_ROWS = 20;

/** The answer of a Predict. `series` are the lines of the form that a forecast follows, if it has one. */
export function showAnswer(answer, description, series) {
  const parts = [];
  if (answer.classification) parts.push(...(answer.classification.rows ?? []).slice(0, MOST_ROWS).map((row) => showClasses(row)));
  else if (answer.regression) parts.push(...(answer.regression.rows ?? []).slice(0, MOST_ROWS).map((row) => showValues(row, answer.regression.values ?? [], description, series)));
  const rows = (answer.classification?.rows ?? answer.regression?.rows ?? []).length;
  if (rows > MOST_ROWS) parts.push(element("p", { class: "hint" }, `${rows - MOST_ROWS} more rows are not shown.`));
  parts.push(...(answer.outputs ?? []).map(showTensor));
  if (!parts.length) parts.push(element("p", { class: "hint" }, "The answer is empty."));
  return parts;
}

/** The answer in a few words, for a screen reader. */
export function sayAnswer(answer) {
  const row = answer.classification?.rows?.[0];
  if (row) return `${row.labels?.[0] ?? "no class"}, ${percent(Number(row.probabilities?.[0] ?? 0))}`;
  const values = answer.regression?.rows?.[0]?.values;
  if (values) return groupValues(answer.regression.values ?? []).filter(({ index }) => index >= 0).slice(0, 5).map(({ name, unit, index }) => `${name} ${formatNumber(Number(values[index]))} ${unit}`.trim()).join(", ");
  return `${(answer.outputs ?? []).length} output tensors`;
}

function percent(probability) {
  const value = probability * 100;
  if (!Number.isFinite(value)) return String(value);
  return value > 0 && value < 0.1 ? "<0.1 %" : `${value.toFixed(1)} %`;
}

function showClasses({ labels = [], probabilities = [] }) {
  const items = labels.map((label, i) => {
    const probability = Number(probabilities[i] ?? 0);
    const share = Math.max(0, Math.min(1, probability || 0));
    const bar = element("span", { class: "bar-track", "aria-hidden": "true" }, element("span", { class: "bar-fill" }));
    bar.firstChild.style.width = `${(share * 100).toFixed(2)}%`;
    return element("li", { class: i === 0 ? "best" : "" }, element("span", { class: "bar-label" }, label), bar, element("span", { class: "bar-value" }, percent(probability)));
  });
  return element("ol", { class: "bars", "aria-label": "Classes, the most probable first" }, ...items);
}

function showValues({ values = [] }, described, description, series) {
  const numbers = values.map(Number);
  const groups = groupValues(described.length === numbers.length ? described : numbers.map((_, i) => ({ name: `value ${i + 1}` })));
  const ahead = groups.filter(({ index }) => index >= 0);
  const parts = [];
  if (series && isForecast(ahead, description)) parts.push(forecastChart(ahead, numbers, series));
  if (ahead.length > 4) parts.push(valueTable(groups, numbers));
  else parts.push(...groups.map((group) => showValue(group, numbers)));
  return element("div", { class: "values" }, ...parts);
}

/** Whether values continue the series: they have its unit, and the series has one column. */
function isForecast(groups, description) {
  const input = (description.metadata?.inputs ?? [])[0];
  return groups.length > 0 && Boolean(input?.unit) && groups.every(({ unit }) => unit === input.unit);
}

function forecastChart(groups, numbers, { lines, names }) {
  const pick = (one, place) => (one.bounds.length ? numbers[one.bounds.at(place).index] : NaN);
  const hasBounds = groups.every(({ bounds }) => bounds.length >= 2);
  const forecast = {
    values: groups.map(({ index }) => numbers[index]),
    ...(hasBounds ? { low: groups.map((one) => pick(one, 0)), high: groups.map((one) => pick(one, -1)) } : {}),
  };
  return lineChart({ lines: lines.slice(0, 1), names: names.slice(0, 1), forecast, label: `The series, and a forecast of ${groups.length} behind it` });
}

function showValue({ name, unit, index, bounds }, numbers) {
  const value = index >= 0 ? formatNumber(numbers[index]) : "–";
  const line = element("p", { class: "value" }, element("span", { class: "value-name" }, name), element("strong", {}, value), unit ? element("span", { class: "value-unit" }, unit) : null);
  const interval = bounds.length >= 2 ? element("p", { class: "hint" }, intervalText(bounds, numbers, unit)) : null;
  return element("div", {}, line, interval);
}

function intervalText(bounds, numbers, unit) {
  const [low, high] = [bounds[0], bounds.at(-1)];
  const level = Math.round((high.quantile - low.quantile) * 1000) / 10;
  return `${level} % interval: ${formatNumber(numbers[low.index])} to ${formatNumber(numbers[high.index])} ${unit}`.trim();
}

function valueTable(groups, numbers) {
  const hasBounds = groups.some(({ bounds }) => bounds.length >= 2);
  const head = ["value", "", ...(hasBounds ? ["interval"] : [])];
  const body = groups.slice(0, MOST_CELLS).map(({ name, unit, index, bounds }) => element(
    "tr", {},
    element("th", { scope: "row" }, name),
    element("td", {}, `${index >= 0 ? formatNumber(numbers[index]) : "–"} ${unit}`.trim()),
    hasBounds ? element("td", {}, bounds.length >= 2 ? `${formatNumber(numbers[bounds[0].index])} to ${formatNumber(numbers[bounds.at(-1).index])}` : "") : null,
  ));
  return table(head.map((text, i) => (i === 1 ? "number" : text)), body, "Values");
}

function table(head, body, label) {
  const row = element("tr", {}, ...head.map((text) => element("th", { scope: "col" }, text)));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, element("table", {}, element("thead", {}, row), element("tbody", {}, ...body)));
}

/** An output tensor as a table if it is small and flat, else as JSON; large ones are cut. */
export function showTensor(message) {
  const tensor = decodeTensor(message);
  const { name, shape } = tensor;
  const type = TYPES[tensor.dtype]?.name ?? tensor.dtype;
  const heading = element("h3", {}, name || "output", element("span", { class: "hint" }, ` ${shape.length ? shape.join(" × ") : "one"} ${type}`));
  const values = Array.from(tensor.values, plain);
  const count = countOf(shape);
  const isTable = shape.length > 0 && shape.length <= 2 && count > 0 && count <= MOST_CELLS && (shape[1] ?? 1) <= MOST_COLUMNS;
  const content = isTable ? tensorTable(values, shape, name) : tensorJson(values, shape, name);
  const cut = count > MOST_CELLS ? element("p", { class: "hint" }, `The first ${MOST_CELLS} of ${count.toLocaleString("en")} elements.`) : null;
  return element("section", { class: "tensor" }, heading, content, cut);
}

function tensorTable(values, shape, name) {
  const columns = shape.length === 2 ? shape[1] : 1;
  const head = ["", ...Array.from({ length: columns }, (_, c) => (shape.length === 2 ? String(c) : "value"))];
  const body = Array.from({ length: shape[0] }, (_, r) => element(
    "tr", {}, element("th", { scope: "row" }, String(r)),
    ...Array.from({ length: columns }, (_, c) => element("td", {}, formatNumber(values[r * columns + c]))),
  ));
  head[0] = "row";
  return table(head, body, `Output ${name}`);
}

function tensorJson(values, shape, name) {
  const nested = shape.length ? nest(values, shape, MOST_CELLS) : values[0];
  const text = JSON.stringify(nested, (_, value) => (typeof value === "number" && !Number.isFinite(value) ? String(value) : value)) ?? "";
  return element("pre", { tabindex: "0", role: "region", "aria-label": `Output ${name}` }, text);
}

function plain(value) {
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : value.toString();
  if (value instanceof Uint8Array) return `base64:${toBase64(value)}`;
  return typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(7)) : value;
}

/** What a call took, and what answered it: pairs of a name and a text. */
export function factsOf({ answer, roundTrip, timing, sent, received }, version) {
  const facts = [["round trip", formatMs(roundTrip)]];
  for (const [key, name] of [["total", "in the server"], ["queue", "queue"], ["run", "run"]]) {
    if (timing[key]?.duration !== undefined) facts.push([name, formatMs(timing[key].duration)]);
  }
  const batch = timing.batch?.text ?? timing["batch-size"]?.text ?? timing.batch?.duration ?? timing["batch-size"]?.duration;
  if (batch !== undefined) facts.push(["batch", `${batch} ${String(batch) === "1" ? "row" : "rows"}`]);
  facts.push(["version", String(answer.version ?? version.version ?? "")]);
  if (version.provider) facts.push(["provider", providerName(version)]);
  facts.push(["sent, received", `${bytes(sent)}, ${bytes(received)}`]);
  return facts;
}

/** The provider without its common ending, and the device. */
export function providerName({ provider = "", devices = [] }) {
  const device = devices.map(({ label }) => label).filter((label) => label && label !== "cpu");
  return [provider.replace(/ExecutionProvider$/, ""), ...new Set(device)].filter(Boolean).join(", ");
}

function bytes(count) {
  return count < 1024 ? `${count} B` : count < 1048576 ? `${(count / 1024).toFixed(1)} KiB` : `${(count / 1048576).toFixed(1)} MiB`;
}
