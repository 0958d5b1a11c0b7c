// Formats values as text, and draws charts as SVG.

const NO_VALUE = "–";

function showRate(value) {
  if (!Number.isFinite(value)) return NO_VALUE;
  if (value === 0) return "0";
  if (value < 0.1) return "<0.1";
  return value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

function showSeconds(value) {
  if (!Number.isFinite(value)) return NO_VALUE;
  if (value === 0) return "0";
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${short(value * 1000)} ms`;
  if (value < 60) return `${short(value)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
  if (value < 86400) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86400)} d ${Math.floor((value % 86400) / 3600)} h`;
}

function showBytes(value) {
  if (!Number.isFinite(value)) return NO_VALUE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${short(value)} ${units[unit]}`;
}

function showCpus(value) {
  return Number.isFinite(value) ? value.toFixed(value < 1 ? 2 : 1) : NO_VALUE;
}

function showCount(value) {
  return Number.isFinite(value) ? Math.round(value).toLocaleString("en") : NO_VALUE;
}

function showErrors(errors, seconds) {
  const listed = [...errors].sort((a, b) => b[1] - a[1]);
  return listed.map(([outcome, n]) => `${outcome} ${showRate(n / seconds)}`).join(", ");
}

function short(value) {
  return value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 100;
const HEIGHT = 24;

/** Draws the last of `places` points into an svg, scaled to the highest one. */
function drawLine(svg, points, places) {
  if (!svg.firstChild) {
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.append(document.createElementNS(SVG, "path"), document.createElementNS(SVG, "path"));
    svg.firstChild.classList.add("area");
    svg.lastChild.classList.add("line");
  }
  const highest = Math.max(...points.map((value) => value ?? 0));
  const first = places - points.length;
  const place = (value, i) => {
    const y = HEIGHT - 1.5 - (highest ? (value / highest) * (HEIGHT - 4) : 0);
    return `${(((first + i) / (places - 1)) * WIDTH).toFixed(2)},${y.toFixed(2)}`;
  };
  let line = "";
  let area = "";
  let run = [];
  const end = () => {
    if (run.length > 1) {
      line += `M${run.join("L")}`;
      const [from, to] = [run[0].split(",")[0], run.at(-1).split(",")[0]];
      area += `M${from},${HEIGHT}L${run.join("L")}L${to},${HEIGHT}Z`;
    }
    run = [];
  };
  points.forEach((value, i) => (value === null ? end() : run.push(place(value, i))));
  end();
  svg.firstChild.setAttribute("d", area);
  svg.lastChild.setAttribute("d", line);
}

/** Sets a node's text if it has changed: screen readers do not read unchanged text again. */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function element(name, attributes = {}, ...children) {
  const created = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) created.setAttribute(key, value);
  created.append(...children); // strings become text nodes, never markup
  return created;
}
