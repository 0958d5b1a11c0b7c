// The forms of rows, of series, of texts, and of any tensor as JSON.

import { lineChart } from "./charts.js";
import { element, filePicker, labelled, select } from "./dom.js";
import { fieldsOf, skeleton } from "./forms.js";
import { flatten, TYPES, toElement } from "./tensors.js";
import { formatDate, parseColumns, parseDate, parseNumber, takeColumns } from "./tables.js";

const MOST_BYTES = 4e6;
const MOST_LISTED = 400;
/** What an empty string is called, by whether it is a missing value. */
const EMPTY = { true: "(missing)", false: "(empty)" };

/** A form with a field for each column of the inputs of a row. */
export function fieldsForm(inputs, changed) {
  const fields = inputs.flatMap((input) => fieldsOf(input).map(makeField));
  const heading = element("legend", { class: "visually-hidden" }, "Values of the row");
  const grid = element("fieldset", { class: "fields" }, heading, ...fields.map((field) => field.element));
  grid.addEventListener("input", () => changed(false));
  return {
    element: grid,
    async tensors() {
      return inputs.map((input) => {
        const values = fields.filter((field) => field.input === input).map((field) => field.read());
        return { name: input.name, dtype: input.dtype, shape: [1, ...input.sample], values };
      });
    },
  };
}

function makeField({ name, type, example, input }) {
  const unit = type === "number" && input.unit && input.sample.length === 0 ? ` (${input.unit})` : "";
  const hints = [];
  if (type !== "choice" && input.sample.length === 0 && input.description && input.description !== name) hints.push(input.description);
  let control;
  let readValue;
  if (type === "choice") {
    const choices = input.categories.slice(0, MOST_LISTED).map((one) => [one, one === "" ? EMPTY[String(input.allowNan)] : one]);
    if (input.allowNan && !input.categories.includes("")) choices.unshift(["", EMPTY.true]);
    if (input.onlyCategories || input.categories.length <= MOST_LISTED) {
      if (!input.onlyCategories) choices.push(["\u0000other", "(another)"]);
      control = select(choices);
    } else control = element("input", { type: "text", autocomplete: "off" });
    control.value = typeof example === "string" ? example : input.categories.find(Boolean) ?? "";
    readValue = () => (control.value === "\u0000other" ? "another" : control.value);
  } else if (type === "text") {
    control = element("input", { type: "text", autocomplete: "off", spellcheck: "false", value: typeof example === "string" ? example : "" });
    readValue = () => control.value;
  } else if (type === "check") {
    control = element("input", { type: "checkbox" });
    control.checked = Boolean(example);
    readValue = () => (control.checked ? 1 : 0);
  } else if (type === "date") {
    control = element("input", { type: "text", inputmode: "numeric", autocomplete: "off", placeholder: "YYYY-MM-DD" });
    control.value = formatDate(typeof example === "number" ? example : 19000);
    hints.push("date");
    readValue = () => number(control.value, (text) => parseDate(text, input.dateOrder), "a date such as 2024-05-31");
  } else {
    control = element("input", { type: "text", inputmode: "decimal", autocomplete: "off" });
    control.value = typeof example === "number" ? String(example) : example === null ? "" : "0";
    readValue = () => number(control.value, (text) => parseNumber(text, input.decimalMark), "a number");
  }
  if (input.allowNan && type !== "choice" && type !== "check") hints.push("may be empty");

  function number(text, parse, expected) {
    if (/^\s*(nan|missing|)\s*$/i.test(text)) {
      if (input.allowNan) return NaN;
      throw focusError(control, `${name} is empty (expected ${expected})`);
    }
    const value = parse(text);
    if (Number.isNaN(value)) throw focusError(control, `${name}: ${JSON.stringify(text)} is not ${expected}`);
    try {
      return toElement(value, input.dtype);
    } catch (error) {
      throw focusError(control, `${name}: ${error.message}`);
    }
  }

  control.addEventListener("input", () => control.removeAttribute("aria-invalid"));
  return { input, element: labelled(`${name}${unit}`, control, hints.join(", ")), read: readValue };
}

/** An error of a control, which the form moves the focus to. */
function focusError(control, message) {
  control.setAttribute("aria-invalid", "true");
  return Object.assign(new Error(message), { control });
}

/** A form whose tensor is a sequence of steps, pasted as a table, with its plot. */
export function seriesForm(input, changed) {
  const width = input.sample.length === 2 ? Math.max(0, input.sample[1]) : 1;
  const area = element("textarea", { rows: "8", spellcheck: "false", autocomplete: "off", wrap: "off" });
  const plot = element("div", { class: "plot" });
  const said = element("p", { class: "hint", role: "status" });
  const zone = element("div", { class: "dropzone" });
  const columns = width === 1 ? "one number in each line" : `${width || "any number of"} columns${input.columns.length ? `: ${input.columns.join(", ")}` : ""}`;
  const label = `Steps, the latest last (${columns})`;
  const picker = filePicker(zone, { label: "Choose a CSV file", accept: ".csv,.tsv,.txt,text/*", take: takeFile });
  area.value = starting(input, width);
  area.addEventListener("input", () => refresh());
  zone.append(labelled(label, area), element("div", { class: "tools" }, picker), plot, said);
  refresh(false);

  async function takeFile(file) {
    if (file.size > MOST_BYTES) {
      said.textContent = `${file.name} has ${file.size} bytes (expected at most ${MOST_BYTES})`;
      return;
    }
    area.value = await file.text();
    refresh();
  }

  function rows() {
    const table = parseColumns(area.value, input.decimalMark);
    const taken = takeColumns(table, input.columns, width);
    const fixed = input.sample[0];
    return fixed > 0 && taken.length > fixed ? taken.slice(-fixed) : taken;
  }

  function refresh(tell = true) {
    area.removeAttribute("aria-invalid");
    try {
      const taken = rows();
      plot.replaceChildren(lineChart({ ...linesOf(taken), label: `Plot of ${taken.length} steps` }));
      const trained = input.window > 0 ? `; the model was trained on ${input.window}` : "";
      said.textContent = `${taken.length} ${taken.length === 1 ? "step" : "steps"}${trained}`;
    } catch (error) {
      plot.replaceChildren();
      said.textContent = error.message;
    }
    if (tell) changed(false);
  }

  function linesOf(taken) {
    return {
      lines: taken[0].map((_, c) => taken.map((row) => row[c])),
      names: taken[0].map((_, c) => input.columns[c] ?? `column ${c + 1}`),
    };
  }

  return {
    element: zone,
    async tensors() {
      let taken;
      try {
        taken = rows();
        const values = taken.flat().map((value) => toElement(value, input.dtype));
        const shape = input.sample.length === 2 ? [1, taken.length, taken[0].length] : [1, taken.length];
        return [{ name: input.name, dtype: input.dtype, shape, values }];
      } catch (error) {
        throw focusError(area, `${input.name}: ${error.message}`);
      }
    },
    /** The lines of the plot, behind which a forecast is drawn. */
    series: () => linesOf(rows()),
  };
}

function starting(input, width) {
  const example = Array.isArray(input.example) ? input.example : null;
  if (example) return example.map((row) => (Array.isArray(row) ? row.join(", ") : String(row))).join("\n");
  const steps = input.sample[0] > 0 ? input.sample[0] : input.window || 24;
  const columns = Math.max(1, width);
  // A wave, so that there is something to see.
  const value = (t, c) => (50 + 40 * Math.sin((t + 2 * c) / 2)).toFixed(0);
  const wave = (t, c) => (/^DATA_TYPE_(FLOAT|DOUBLE|BFLOAT)/.test(input.dtype) ? value(t, c) : String(t % 2));
  return Array.from({ length: Math.min(steps, 200) }, (_, t) => Array.from({ length: columns }, (_, c) => wave(t, c)).join(", ")).join("\n");
}

/** A form whose tensor is the characters of a text. */
export function charactersForm(input, changed) {
  const field = element("input", { type: "text", autocomplete: "off", spellcheck: "false" });
  field.value = Array.isArray(input.example) ? input.example.join("") : typeof input.example === "string" ? input.example : "Schmidt";
  field.addEventListener("input", () => changed(false));
  return {
    element: labelled("Text", field, input.description),
    async tensors() {
      const characters = Array.from(field.value.normalize("NFC"));
      if (!characters.length) throw focusError(field, `${input.name}: no text (expected at least one character)`);
      return [{ name: input.name, dtype: input.dtype, shape: [1, characters.length], values: characters }];
    },
    words: () => Array.from(field.value.normalize("NFC")),
  };
}

/** A form whose tensor is written as JSON. */
export function jsonForm(input, changed) {
  const area = element("textarea", { rows: "8", spellcheck: "false", autocomplete: "off", wrap: "off", class: "code" });
  const start = skeleton(input);
  area.value = showNested(start);
  area.addEventListener("input", () => {
    area.removeAttribute("aria-invalid");
    changed(false);
  });
  const hint = `${input.hasBatch ? "Nested lists, the batch first" : "Nested lists"}; or {"shape": [...], "fill": 0}`;
  return {
    element: labelled(`${input.name}, as JSON`, area, hint),
    async tensors() {
      try {
        return [readJson(input, area.value)];
      } catch (error) {
        throw focusError(area, `${input.name}: ${error.message}`);
      }
    },
  };
}

/** Nested lists as text, the innermost in one line each. */
function showNested(value) {
  if (!Array.isArray(value) || !value.some(Array.isArray)) return JSON.stringify(value);
  const indent = (text) => text.split("\n").map((line) => `  ${line}`).join("\n");
  return `[\n${value.map((one) => indent(showNested(one))).join(",\n")}\n]`;
}

function readJson(input, text) {
  let nested;
  try {
    nested = JSON.parse(text);
  } catch (error) {
    throw new Error(`not valid JSON: ${error.message}`);
  }
  if (nested !== null && typeof nested === "object" && !Array.isArray(nested)) {
    const { shape, fill } = nested;
    if (!Array.isArray(shape) || !shape.every((size) => Number.isInteger(size) && size >= 0) || fill === undefined) {
      throw new Error('not a tensor (expected nested lists, or {"shape": [...], "fill": 0})');
    }
    const count = shape.reduce((product, size) => product * size, 1);
    if (count > 2e7) throw new Error(`${count} elements are too many for this page (expected at most 20 million)`);
    return { name: input.name, dtype: input.dtype, shape, values: new Array(count).fill(toElement(fill, input.dtype)) };
  }
  const { shape, values } = flatten(nested);
  if (!TYPES[input.dtype]) throw new Error(`its element type ${input.dtype} is not known`);
  return { name: input.name, dtype: input.dtype, shape, values: values.map((value) => toElement(value, input.dtype)) };
}

