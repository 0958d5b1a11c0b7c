// The answers of a recurrent model after each step, by a call for each beginning of the sequence.

import { call } from "./api.js";
import { lineChart, range } from "./charts.js";
import { element, formatNumber } from "./dom.js";
import { groupValues } from "./forms.js";
import { requestOf } from "./snippets.js";
import { countOf, decodeTensor } from "./tensors.js";

/** Beginnings that are asked about; of a longer sequence they are spread evenly. */
const MOST_STEPS = 48;
const CALLS_AT_A_TIME = 4;
const CLASSES = 5;
const MOST_LINES = 6;

/** The input with the steps, if a model answers beginnings of its sequence; else null. */
export function steppedInput(description, inputs) {
  if (!description.sequences) return null;
  return inputs.find((input) => !input.lengthsOf && input.timeAxis === 1 && input.hasBatch && input.sample[0] === -1) ?? null;
}

/** The numbers of steps to ask about: all of them, or some, with the last. */
export function beginnings(steps) {
  const count = Math.min(steps, MOST_STEPS);
  return [...new Set(Array.from({ length: count }, (_, i) => Math.round(((i + 1) * steps) / count)))];
}

/** The tensors of the first `steps` steps. */
export function cutTensors(tensors, inputs, stepped, steps) {
  return tensors.map((tensor) => {
    const input = inputs.find(({ name }) => name === tensor.name);
    if (input?.lengthsOf === stepped.name) return { ...tensor, values: [steps].map((one) => (tensor.dtype === "DATA_TYPE_INT64" ? BigInt(one) : one)) };
    if (input?.timeAxis !== 1 || tensor.shape.length < 2) return tensor;
    const shape = [1, steps, ...tensor.shape.slice(2)];
    return { ...tensor, shape, values: tensor.values.slice(0, countOf(shape)) };
  });
}

/** Asks about each beginning, and draws what is answered into `place` meanwhile. */
export async function showSteps(place, { request, inputs, stepped, words, signal }) {
  const { tensors } = request;
  const sequence = tensors.find(({ name }) => name === stepped.name);
  if (!sequence || sequence.shape.length < 2 || sequence.shape[0] !== 1 || sequence.shape[1] < 2) return;
  const lengths = beginnings(sequence.shape[1]);
  const answers = new Array(lengths.length);
  const said = element("p", { class: "hint", role: "status" }, "");
  const picture = element("div");
  place.replaceChildren(element("h3", {}, "After each step"), picture, said);
  let next = 0;
  let done = 0;
  const work = async () => {
    while (next < lengths.length && !signal.aborted) {
      const at = next;
      next += 1;
      const cut = cutTensors(tensors, inputs, stepped, lengths[at]);
      const message = requestOf({ ...request, tensors: cut, topK: 1000, rawOutputs: false, priority: "PRIORITY_LOW" });
      const { answer } = await call("Prediction/Predict", message, { signal });
      answers[at] = answer;
      done += 1;
      if (done === lengths.length || done % 8 === 0) draw();
    }
  };
  const draw = () => {
    if (signal.aborted) return;
    picture.replaceChildren(...stepsPicture(lengths, answers, words));
  };
  try {
    await Promise.all(Array.from({ length: CALLS_AT_A_TIME }, work));
    const part = lengths.length < sequence.shape[1] ? `, ${lengths.length} of them asked about` : "";
    said.textContent = `${sequence.shape[1]} steps${part}; a call for each beginning of the sequence. A session keeps the state instead.`;
  } catch (error) {
    if (!signal.aborted) said.textContent = `Stopped after ${done} of ${lengths.length}: ${error.message}`;
  }
}

function stepsPicture(lengths, answers, words) {
  const classified = answers.map((answer) => answer?.classification?.rows?.[0]);
  if (classified.some(Boolean)) return classPicture(lengths, classified, words);
  const values = answers.map((answer) => answer?.regression?.rows?.[0]?.values?.map(Number));
  const described = answers.find((answer) => answer?.regression)?.regression.values;
  if (!described) return tensorPicture(lengths, answers, words);
  const groups = groupValues(described).filter(({ index }) => index >= 0);
  const lines = groups.map(({ index }) => values.map((row) => row?.[index] ?? NaN));
  const names = groups.map(({ name, unit }) => `${name} ${unit ? `(${unit})` : ""}`.trim());
  const items = listOf(lengths, words, values.map((row) => (row ? groups.slice(0, 3).map(({ index, unit }) => `${formatNumber(row[index])} ${unit}`.trim()).join(", ") : "")));
  return [lineChart({ lines, names, label: "The answer after each step", scale: range(lines.flat()), ends: [lengths[0], lengths.at(-1)] }), items];
}

/** The numbers of the first output that has few of them, and as many after each step. */
function tensorPicture(lengths, answers, words) {
  const outputs = answers.map((answer) => (answer?.outputs ?? []).map(decodeTensor));
  const isSmall = (i) => outputs.every((list) => !list.length || (countOf(list[i].shape) <= MOST_LINES && list[i].dtype !== "DATA_TYPE_STRING" && list[i].shape.join() === (outputs.find((one) => one.length)[i].shape.join())));
  const first = outputs.find((list) => list.length);
  const at = first ? first.findIndex((_, i) => isSmall(i)) : -1;
  if (at < 0) return [element("p", { class: "hint" }, "The outputs are too large to be drawn after each step.")];
  const rows = outputs.map((list) => (list.length ? Array.from(list[at].values, Number) : null));
  const count = countOf(first[at].shape);
  const lines = Array.from({ length: count }, (_, c) => rows.map((row) => row?.[c] ?? NaN));
  const names = lines.map((_, c) => `${first[at].name} ${c}`);
  const texts = rows.map((row) => (row ? row.map(formatNumber).join(", ") : ""));
  return [lineChart({ lines, names, label: "The output after each step", ends: [lengths[0], lengths.at(-1)] }), listOf(lengths, words, texts)];
}

function classPicture(lengths, rows, words) {
  const last = rows.findLast(Boolean);
  const top = new Set(last.labels.slice(0, CLASSES));
  for (const row of rows) if (row && top.size < CLASSES + 1) top.add(row.labels[0]);
  const names = [...top];
  const lines = names.map((name) => rows.map((row) => {
    const place = row ? row.labels.indexOf(name) : -1;
    return place < 0 ? NaN : Number(row.probabilities[place]);
  }));
  const texts = rows.map((row) => (row ? `${row.labels[0]} ${(Number(row.probabilities[0]) * 100).toFixed(0)} %` : ""));
  return [lineChart({ lines, names, label: "Probabilities after each step", scale: [0, 1], ends: [lengths[0], lengths.at(-1)] }), listOf(lengths, words, texts)];
}

function listOf(lengths, words, texts) {
  const items = lengths.map((steps, i) => element("li", {}, element("span", { class: "step" }, words ? words.slice(0, steps).join("") : `step ${steps}`), element("span", {}, texts[i])));
  return element("div", { class: "steps", tabindex: "0", role: "region", "aria-label": "Answers after each step" }, element("ol", {}, ...items));
}
