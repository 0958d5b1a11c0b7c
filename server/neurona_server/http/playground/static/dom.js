// Elements of the page. What a server sends becomes text or an attribute, never markup.

/** An element with attributes and children; functions are listeners of events. */
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

const SVG = "http://www.w3.org/2000/svg";

/** The same for SVG. */
export function shape(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== undefined && value !== null) node.setAttribute(key, String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Sets a node's text if it has changed: screen readers do not read unchanged text again. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

let lastId = 0;

/** A name that no other element has. */
export function newId(prefix) {
  lastId += 1;
  return `${prefix}-${lastId}`;
}

/** A control below its label, which names it for screen readers; `hint` describes it. */
export function labelled(label, control, hint = "") {
  control.id ||= newId("field");
  const note = hint ? element("span", { class: "hint", id: `${control.id}-hint` }, hint) : null;
  if (note) control.setAttribute("aria-describedby", note.id);
  return element("div", { class: "field" }, element("label", { for: control.id }, label), control, note);
}

/** A <select> of [value, text] pairs. */
export function select(choices, attributes = {}) {
  return element("select", attributes, ...choices.map(([value, text]) => element("option", { value }, text)));
}

/** A button that opens the chooser of files, and takes files that are dropped on `zone`. */
export function filePicker(zone, { label, accept, take }) {
  const input = element("input", { type: "file", accept, class: "visually-hidden", tabindex: "-1", "aria-hidden": "true" });
  input.addEventListener("change", () => {
    if (input.files[0]) take(input.files[0]);
    input.value = "";
  });
  zone.addEventListener("dragover", (event) => {
    event.preventDefault();
    zone.classList.add("over");
  });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("over");
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  });
  const button = element("button", { type: "button", click: () => input.click() }, label);
  return element("span", {}, button, input);
}

/** A number with the digits that matter. */
export function formatNumber(value) {
  if (typeof value === "bigint") return value.toString();
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(3);
  if (size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 1 });
  return String(Number(value.toPrecision(4)));
}

/** A duration in milliseconds as text. */
export function formatMs(value) {
  if (!Number.isFinite(value)) return "–";
  if (value < 1) return `${Math.round(value * 1000)} µs`;
  return value < 10 ? `${value.toFixed(1)} ms` : value < 10000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}
