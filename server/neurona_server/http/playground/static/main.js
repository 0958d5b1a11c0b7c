// The page: which model is open, its form, its calls.

import { call, serverFacts, setToken, token } from "./api.js";
import { factsOf, providerName, sayAnswer, showAnswer } from "./answers.js";
import { byId, element, newId, select } from "./dom.js";
import { describeShape, formsOf, readInputs } from "./forms.js";
import { kindOf, showList, stateOf } from "./model_list.js";
import { pictureForm } from "./picture_form.js";
import { snippet, fileName, needsFile, requestOf } from "./snippets.js";
import { soundForm } from "./sound_form.js";
import { showSteps, steppedInput } from "./steps.js";
import { TYPES } from "./tensors.js";
import { charactersForm, fieldsForm, jsonForm, seriesForm } from "./text_forms.js";

const FORM_NAMES = {
  image: "Picture", sound: "Sound", series: "Steps as a table", fields: "Fields", characters: "Text", json: "JSON",
};
const LANGUAGES = [["python", "Python"], ["curl", "curl"], ["grpcurl", "grpcurl"], ["node", "Node"]];
const TOP_K = 5;

const state = { models: [], facts: {}, open: null, loading: 0, running: null };

/** Runs a call, and asks for a token if the server wants one. */
async function ask(method, request, options) {
  try {
    const result = await call(method, request, options);
    byId("token-form").hidden = true;
    return result;
  } catch (error) {
    if (error.wantsToken) askForToken(error.message);
    throw error;
  }
}

function askForToken(message) {
  const form = byId("token-form");
  form.hidden = false;
  setNotice(token() ? message : "");
  setToken("");
  byId("token").focus();
}

function setNotice(text) {
  byId("notice").hidden = !text;
  byId("notice").textContent = text;
}

async function reload() {
  try {
    const { answer } = await ask("Models/List", {});
    state.models = (answer.models ?? []).sort((a, b) => a.model.localeCompare(b.model));
    setNotice("");
    showList(state.models, chosenModel().name);
    const chosen = chosenModel();
    if (!chosen.name && state.models.length) {
      const ready = state.models.find(({ versions = [] }) => versions.some((one) => one.state === "STATE_READY"));
      if (ready) location.replace(`#model=${encodeURIComponent(ready.model)}`);
    } else await openModel();
  } catch (error) {
    if (!error.wantsToken) setNotice(error.message);
  }
}

function chosenModel() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  return { name: parameters.get("model") ?? "", version: parameters.get("version") ?? "" };
}

async function openModel() {
  const { name, version } = chosenModel();
  state.running?.abort();
  showList(state.models, name);
  if (!name) return;
  state.loading += 1;
  const turn = state.loading;
  document.title = `${name}: Neurona playground`;
  let description;
  try {
    description = (await ask("Models/Describe", { model: name, ...(version ? { version } : {}) })).answer;
  } catch (error) {
    if (turn === state.loading && !error.wantsToken) showUnusable(name, error);
    return;
  }
  if (turn === state.loading) showModel(description, version);
}

/** A model that cannot be described: why, as the server says it. */
function showUnusable(name, error) {
  const summary = state.models.find(({ model }) => model === name);
  const reasons = (summary?.versions ?? []).filter((one) => one.reason).map((one) => element("li", {}, `version ${one.version ?? 0}, ${stateOf(one)}: ${one.reason}`));
  byId("model").replaceChildren(element("h2", {}, name), element("p", { class: "error" }, error.message), reasons.length ? element("ul", {}, ...reasons) : "");
}

function showModel(description, version) {
  const inputs = readInputs(description);
  const view = { description, version, inputs, forms: [], words: null };
  const form = element("form", { id: "form", novalidate: true });
  const { groups, lengths } = makeForms(view, (isComplete) => contentChanged(view, isComplete));
  const error = element("p", { class: "error", role: "alert", id: "error", hidden: true });
  const button = element("button", { type: "submit", class: "primary" }, "Predict");
  const options = optionsOf(description, view);
  form.append(...groups, options, element("div", { class: "actions" }, button, element("span", { class: "hint busy", "aria-hidden": "true" })), error);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    predict(view);
  });
  Object.assign(view, {
    form, button, error, lengths,
    answer: element("div", { id: "answer-content" }, element("p", { class: "hint" }, "Not asked yet.")),
    said: element("p", { class: "visually-hidden", role: "status", "aria-live": "polite" }),
    steps: element("div", { id: "steps" }),
    code: element("div", { id: "code-content" }),
  });
  state.open = view;
  byId("model").replaceChildren(
    headOf(view),
    element("div", { class: "panes" },
      element("section", { class: "card", "aria-labelledby": "input-title" }, element("h2", { id: "input-title" }, "Input"), form),
      element("section", { class: "card", "aria-labelledby": "answer-title" }, element("h2", { id: "answer-title" }, "Answer"), view.said, view.answer, view.steps)),
    codeSection(view),
    aboutSection(view),
  );
}

function headOf({ description, version }) {
  const summary = state.models.find(({ model }) => model === description.model);
  const served = description.version ?? {};
  const versions = (summary?.versions ?? []).filter((one) => Number(one.version) > 0);
  const pill = element("span", { class: "pill", "data-kind": kindOf(served) }, stateOf(served));
  const parts = [element("h2", {}, description.model), pill];
  if (versions.length > 1) {
    const choices = [["", `default (${served.version})`], ...versions.map((one) => [String(one.version), `${one.version}${one.labels?.length ? ` (${one.labels.join(", ")})` : ""}, ${stateOf(one)}`])];
    const chooser = select(choices, { "aria-label": "Version" });
    chooser.value = version;
    chooser.addEventListener("change", () => {
      const parameters = new URLSearchParams({ model: description.model, ...(chooser.value ? { version: chooser.value } : {}) });
      location.hash = parameters.toString();
    });
    parts.push(chooser);
  } else parts.push(element("span", { class: "hint" }, `version ${served.version ?? "?"}`));
  for (const label of served.labels ?? []) parts.push(element("span", { class: "tag" }, label));
  parts.push(element("span", { class: "hint" }, providerName(served)));
  const text = description.metadata?.description ?? "";
  const warning = served.degraded || served.reason;
  return element("div", { class: "head" }, element("div", { class: "title" }, ...parts), text ? element("p", {}, text) : null, warning ? element("p", { class: "error" }, warning) : null);
}

/** The forms of all inputs: fields together, every other input by itself. */
function makeForms(view, changed) {
  const lengths = view.inputs.filter((input) => formsOf(input)[0] === "lengths");
  const rest = view.inputs.filter((input) => !lengths.includes(input));
  const rows = rest.filter((input) => formsOf(input)[0] === "fields" && !input.optional);
  const groups = [];
  if (rows.length) groups.push(formGroup(view, rows, changed));
  for (const input of rest) if (!rows.includes(input)) groups.push(formGroup(view, [input], changed));
  if (!groups.length) groups.push(element("p", { class: "hint" }, "This model takes no inputs."));
  return { groups, lengths };
}

function formGroup(view, inputs, changed) {
  const [input] = inputs;
  const choices = formsOf(input);
  const place = element("div");
  const entry = { inputs, form: null, isSent: () => true };
  const open = (kind) => {
    const many = (make) => combine(inputs.map((one) => make(one, changed)));
    const makers = {
      image: () => pictureForm(input, changed),
      sound: () => soundForm(input, changed),
      series: () => seriesForm(input, changed),
      fields: () => fieldsForm(inputs, changed),
      characters: () => charactersForm(input, changed),
      json: () => many(jsonForm),
    };
    entry.form = makers[kind]();
    place.replaceChildren(entry.form.element);
  };
  open(choices[0]);
  view.forms.push(entry);
  const title = inputs.length === 1 ? input.name : "";
  const chooser = choices.length > 1 ? select(choices.map((kind) => [kind, FORM_NAMES[kind]]), { change: (event) => { open(event.target.value); changed(false); } }) : null;
  const head = element("div", { class: "input-head" });
  if (title) head.append(element("h3", {}, title, element("span", { class: "hint" }, ` ${describeShape(input, typeName(input.dtype))}`)));
  if (chooser) {
    chooser.setAttribute("aria-label", `Enter ${title || "the row"} as`);
    head.append(chooser);
  }
  if (input.optional) {
    const box = element("input", { type: "checkbox", id: newId("send") });
    box.addEventListener("change", () => { place.hidden = !box.checked; });
    place.hidden = true;
    entry.isSent = () => box.checked;
    head.append(element("span", { class: "check" }, box, element("label", { for: box.id }, "Send this input, which may be left out")));
  }
  const words = inputs.length === 1 && input.description && choices[0] !== "characters" ? element("p", { class: "hint" }, input.description) : null;
  const unit = inputs.length === 1 && input.unit && !input.description.includes(input.unit) ? element("p", { class: "hint" }, `Unit: ${input.unit}`) : null;
  return element("div", { class: "input" }, head, words, unit, place);
}

/** Several forms as one. */
function combine(forms) {
  if (forms.length === 1) return forms[0];
  return {
    element: element("div", {}, ...forms.map((one) => one.element)),
    tensors: async () => (await Promise.all(forms.map((one) => one.tensors()))).flat(),
  };
}

function typeName(dtype) {
  return TYPES[dtype]?.name ?? dtype;
}

function optionsOf(description, view) {
  const raw = element("input", { type: "checkbox", id: newId("raw") });
  const stepped = element("input", { type: "checkbox", id: newId("stepped") });
  stepped.checked = true;
  const check = (box, text) => element("span", { class: "check" }, box, element("label", { for: box.id }, text));
  const parts = [];
  const task = description.metadata?.task ?? "TASK_TENSORS";
  if (task !== "TASK_TENSORS") parts.push(check(raw, "Show the output tensors too"));
  const input = steppedInput(description, view.inputs);
  if (input) parts.push(check(stepped, "Show the answer after each step"));
  Object.assign(view, { task, wantsRaw: () => raw.checked, stepped: () => (stepped.checked ? input : null) });
  return element("div", { class: "options" }, ...parts);
}

/** The input is another: the answer is not its answer any more. A whole picture or sound is asked about at once. */
function contentChanged(view, isComplete = false) {
  if (state.open !== view) return;
  state.running?.abort();
  view.answer.classList.add("stale");
  view.steps.classList.add("stale");
  view.code.replaceChildren(element("p", { class: "hint" }, "The code is made from the next call."));
  if (isComplete) predict(view);
}

async function readForms(view) {
  const tensors = [];
  for (const { form, isSent } of view.forms) if (isSent()) tensors.push(...(await form.tensors()));
  for (const input of view.lengths) {
    const sequence = tensors.find(({ name }) => name === input.lengthsOf);
    if (!sequence && input.optional) continue;
    const steps = sequence?.shape[input.lengthsAxis || 1] ?? 1;
    tensors.push({ name: input.name, dtype: input.dtype, shape: [1, ...input.sample], values: [/INT64/.test(input.dtype) ? BigInt(steps) : steps] });
  }
  return tensors;
}

async function predict(view) {
  state.running?.abort();
  const controller = new AbortController();
  state.running = controller;
  const { signal } = controller;
  view.error.hidden = true;
  let request;
  let result;
  view.button.setAttribute("aria-busy", "true");
  try {
    const tensors = await readForms(view);
    const labels = view.description.metadata?.labels?.length ?? 0;
    const topK = view.task === "TASK_CLASSIFICATION" ? Math.max(1, Math.min(TOP_K, labels || TOP_K)) : 0;
    request = { model: view.description.model, version: view.version, topK, rawOutputs: view.wantsRaw(), task: view.task, tensors };
    result = await ask("Prediction/Predict", requestOf(request), { signal });
  } catch (error) {
    if (!signal.aborted) showError(view, error);
    return;
  } finally {
    if (state.running === controller) view.button.removeAttribute("aria-busy");
  }
  if (signal.aborted || state.open !== view) return;
  showResult(view, request, result);
  const stepped = view.stepped();
  view.steps.replaceChildren();
  view.steps.classList.remove("stale");
  if (!stepped) return;
  const entry = view.forms.find(({ inputs }) => inputs.includes(stepped));
  await showSteps(view.steps, { request, inputs: view.inputs, stepped, words: entry.form.words?.() ?? null, signal });
}

function showError(view, error) {
  view.error.textContent = error.code ? `${error.code}: ${error.message}` : error.message;
  view.error.hidden = false;
  view.answer.classList.add("stale");
  view.steps.replaceChildren();
  error.control?.focus();
}

function showResult(view, request, result) {
  const entry = view.forms.find(({ form }) => form.series);
  let series = null;
  try {
    series = entry?.form.series() ?? null;
  } catch {
    series = null; // changed meanwhile; the answer is shown without it
  }
  const facts = factsOf(result, view.description.version ?? {});
  const list = element("dl", { class: "facts" }, ...facts.map(([name, text]) => element("div", {}, element("dt", {}, name), element("dd", {}, text))));
  view.answer.classList.remove("stale");
  view.answer.replaceChildren(...showAnswer(result.answer, view.description, series), list);
  view.said.textContent = `Answer: ${sayAnswer(result.answer)}`;
  showCode(view, request);
}

function codeSection(view) {
  view.code.append(element("p", { class: "hint" }, "The code is made from the next call."));
  return element("section", { class: "card", "aria-labelledby": "code-title" }, element("h2", { id: "code-title" }, "The same call as code"), view.code);
}

function showCode(view, request) {
  const server = serverOf(state.facts);
  const said = element("span", { class: "hint", role: "status" });
  const code = element("pre", { tabindex: "0", role: "region", "aria-label": "Code" });
  const language = element("div", { class: "languages", role: "group", "aria-label": "Language" });
  const show = (key) => {
    sessionStorage.setItem("neurona-language", key);
    code.textContent = snippet(key, request, server);
    for (const button of language.children) button.setAttribute("aria-pressed", String(button.dataset.language === key));
  };
  for (const [key, name] of LANGUAGES) language.append(element("button", { type: "button", "data-language": key, click: () => show(key) }, name));
  const copy = element("button", { type: "button", click: async () => { said.textContent = await copyText(code) ? "Copied." : "The code is selected: copy it."; } }, "Copy");
  const tools = element("div", { class: "tools" }, language, copy);
  const message = requestOf(request);
  if (needsFile(message)) tools.append(element("button", { type: "button", click: () => save(JSON.stringify(message)) }, `Save ${fileName}`));
  tools.append(said);
  const saved = sessionStorage.getItem("neurona-language");
  show(LANGUAGES.some(([key]) => key === saved) ? saved : "python");
  view.code.replaceChildren(tools, code);
}

/** Copies the text of an element; where the browser refuses, selects it instead. */
async function copyText(node) {
  try {
    await navigator.clipboard.writeText(node.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(node);
    return false;
  }
}

function save(text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: url, download: fileName }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function serverOf(facts) {
  const host = addressHost(facts.grpc?.host);
  return {
    grpc: facts.grpc ? `${host}:${facts.grpc.port}` : `${addressHost("")}:8001`,
    tls: Boolean(facts.grpc?.tls),
    http: new URL(".", location.href).href,
    tokens: Boolean(facts.tokens),
  };
}

/** The host of an address of the server; of one that listens everywhere, that of this page. */
function addressHost(host) {
  return !host || host === "0.0.0.0" || host === "::" || host === "[::]" ? location.hostname : host;
}

function aboutSection({ description }) {
  const metadata = description.metadata ?? {};
  const rows = [];
  const tensors = (list) => list.map((one) => `${one.name}: ${describeShape(one, typeName(one.dtype))}${one.optional ? ", may be left out" : ""}`);
  rows.push(["Inputs", tensors(description.inputs ?? [])], ["Outputs", tensors(description.outputs ?? [])]);
  if (metadata.labels?.length) rows.push(["Labels", [listed(metadata.labels)]]);
  if (metadata.values?.length) rows.push(["Values", [listed(metadata.values.map(({ name = "", unit = "" }) => (unit ? `${name} (${unit})` : name)))]]);
  const figures = Object.entries(metadata.figures ?? {}).filter(([name]) => /^test_/.test(name));
  if (figures.length) rows.push(["Measured", figures.map(([name, value]) => `${name.replaceAll("_", " ")}: ${Number(Number(value).toPrecision(4))}`)]);
  const batching = description.batching ?? {};
  rows.push(["Batches", [description.batched ? `requests share runs, up to ${batching.max_rows ?? "?"} rows` : "each request runs by itself"]]);
  const list = element("dl", {}, ...rows.map(([name, texts]) => element("div", {}, element("dt", {}, name), ...texts.map((text) => element("dd", {}, text)))));
  return element("details", { class: "card about" }, element("summary", {}, "About this model"), list);
}

function listed(names) {
  const shown = names.slice(0, 40).join(", ");
  return names.length > 40 ? `${shown} and ${names.length - 40} more` : shown;
}

function showFacts(facts) {
  byId("facts").textContent = facts.version ? `version ${facts.version}` : "";
  const links = [];
  if (facts.metrics) links.push(["Status page", `${facts.metrics.tls ? "https" : "http"}://${addressHost(facts.metrics.host)}:${facts.metrics.port}/`]);
  for (const { name, path } of facts.links ?? []) links.push([name, path]);
  byId("links").replaceChildren(...links.map(([name, href]) => element("li", {}, element("a", { href, rel: "noopener" }, name))));
}

byId("search").addEventListener("input", () => showList(state.models, chosenModel().name));
byId("reload").addEventListener("click", reload);
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setToken(byId("token").value.trim());
  byId("token").value = "";
  reload();
});
addEventListener("hashchange", () => {
  openModel().then(() => byId("model").focus({ preventScroll: true }));
});

state.facts = await serverFacts();
showFacts(state.facts);
await reload();
