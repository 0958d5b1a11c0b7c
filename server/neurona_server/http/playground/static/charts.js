// Charts as SVG. Each has a text for those who do not see it.

import { element, formatNumber, shape } from "./dom.js";

const WIDTH = 640;
const HEIGHT = 200;
const LEFT = 52;
const BOTTOM = 22;
const TOP = 8;
const MOST_POINTS = 1200;
const MOST_LINES = 12;

/**
 * Lines over steps, with a forecast behind them.
 *
 * `lines` are lists of numbers, NaN where there is none; `names` theirs. `forecast` has `values`,
 * and perhaps `low` and `high`, which follow the last step. `scale`, if given, fixes the vertical
 * axis, `ends` the texts at both ends of the other.
 */
export function lineChart({ lines, names = [], forecast = null, label, scale = null, ends = null }) {
  const shown = lines.slice(0, MOST_LINES);
  const steps = Math.max(...shown.map((line) => line.length));
  const ahead = forecast ? forecast.values.length : 0;
  const all = [...shown.flat(), ...(forecast ? [...forecast.values, ...(forecast.low ?? []), ...(forecast.high ?? [])] : [])];
  const [low, high] = scale ?? range(all);
  const last = Math.max(1, steps + ahead - 1);
  const x = (step) => LEFT + (step / last) * (WIDTH - LEFT - 12);
  const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, class: "chart" });
  for (const value of ticks(low, high)) {
    svg.append(
      shape("line", { class: "grid", x1: LEFT, x2: WIDTH - 12, y1: y(value), y2: y(value) }),
      shape("text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, formatNumber(value)),
    );
  }
  svg.append(shape("text", { class: "tick", x: LEFT, y: HEIGHT - 5 }, String(ends?.[0] ?? 1)));
  svg.append(shape("text", { class: "tick", x: WIDTH - 12, y: HEIGHT - 5, "text-anchor": "end" }, String(ends?.[1] ?? steps + ahead)));
  if (ahead) drawForecast(svg, forecast, shown[0], x, y, steps);
  shown.forEach((line, i) => {
    svg.append(shape("path", { class: `line tone-${i % 6}`, d: pathOf(line, x, y) }));
    if (line.length === 1) svg.append(shape("circle", { class: `dot tone-${i % 6}`, cx: x(0), cy: y(line[0]), r: 3 }));
  });
  const legend = names.length > 1 || ahead ? legendOf(names.slice(0, MOST_LINES), ahead, lines.length) : null;
  return element("figure", {}, svg, legend);
}

function drawForecast(svg, { values, low, high }, line, x, y, steps) {
  const places = values.map((_, i) => x(steps + i));
  svg.append(shape("rect", { class: "ahead", x: x(steps - 0.5), y: TOP, width: Math.max(1, x(steps + values.length - 1) - x(steps - 0.5) + 6), height: HEIGHT - TOP - BOTTOM }));
  if (low && high) {
    const up = places.map((place, i) => `${place},${y(high[i])}`);
    const down = places.map((place, i) => `${place},${y(low[i])}`).reverse();
    if (places.length > 1) svg.append(shape("path", { class: "band", d: `M${[...up, ...down].join("L")}Z` }));
    else svg.append(shape("line", { class: "whisker", x1: places[0], x2: places[0], y1: y(low[0]), y2: y(high[0]) }));
  }
  const joined = [`${x(steps - 1)},${y(line.at(-1))}`, ...places.map((place, i) => `${place},${y(values[i])}`)];
  if (Number.isFinite(line.at(-1))) svg.append(shape("path", { class: "line forecast", d: `M${joined.join("L")}` }));
  places.forEach((place, i) => svg.append(shape("circle", { class: "dot forecast", cx: place, cy: y(values[i]), r: 3.5 })));
}

function legendOf(names, ahead, count) {
  const items = names.map((name, i) => element("li", { class: `tone-${i % 6}` }, name));
  if (ahead) items.push(element("li", { class: "forecast" }, "forecast"));
  if (count > MOST_LINES) items.push(element("li", { class: "more" }, `${count - MOST_LINES} more are not drawn`));
  return element("ul", { class: "legend" }, ...items);
}

function pathOf(line, x, y) {
  const every = Math.max(1, Math.ceil(line.length / MOST_POINTS));
  let path = "";
  let pen = "M";
  for (let i = 0; i < line.length; i += every) {
    if (!Number.isFinite(line[i])) {
      pen = "M";
      continue;
    }
    path += `${pen}${x(i).toFixed(1)},${y(line[i]).toFixed(1)}`;
    pen = "L";
  }
  return path;
}

/** The waveform of a sound: the lowest and highest sample of each column. */
export function waveform(samples, label) {
  const columns = Math.min(WIDTH, samples.length);
  const middle = 40;
  let path = "";
  for (let c = 0; c < columns; c += 1) {
    let [low, high] = [1, -1];
    const end = Math.max(Math.floor(((c + 1) * samples.length) / columns), Math.floor((c * samples.length) / columns) + 1);
    for (let i = Math.floor((c * samples.length) / columns); i < end; i += 1) {
      if (samples[i] < low) low = samples[i];
      if (samples[i] > high) high = samples[i];
    }
    path += `M${c},${(middle - high * 38).toFixed(1)}V${(middle - low * 38 + 0.5).toFixed(1)}`;
  }
  const attributes = { viewBox: `0 0 ${columns} 80`, preserveAspectRatio: "none", role: "img", "aria-label": label, class: "chart wave" };
  return shape("svg", attributes, shape("path", { class: "line tone-0", d: path }));
}

/** The lowest and highest number, apart from each other, with 0 if it is near. */
export function range(numbers) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of numbers) {
    if (!Number.isFinite(value)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) return [0, 1];
  if (low > 0 && low < (high - low) * 0.5) low = 0;
  if (low === high) return [low - 1, high + 1];
  return [low, high];
}

/** Round numbers between two: three to six of them. */
export function ticks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const values = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i += 1) values.push(Number((i * step).toPrecision(12)));
  return values;
}
