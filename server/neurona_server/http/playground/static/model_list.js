// The list of models, which can be searched.

import { byId, element, setText } from "./dom.js";

const SEARCH_FROM = 8;
const MOST_SHOWN = 200;
const KINDS = { STATE_READY: "good", STATE_LOADING: "busy", STATE_DRAINING: "busy", STATE_FAILED: "bad" };

/** The state of a version in a word. */
export function stateOf(version) {
  return (version.state ?? "STATE_LOADING").replace("STATE_", "").toLowerCase();
}

/** The kind of a state, which decides its colour. */
export function kindOf(version) {
  return KINDS[version.state ?? "STATE_LOADING"] ?? "idle";
}

/** The models that have all words of a text in their names, labels or states. */
export function matching(models, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  return models.filter((model) => {
    const versions = (model.versions ?? []).map((one) => `${one.version ?? ""} ${stateOf(one)} ${(one.labels ?? []).join(" ")}`);
    const all = `${model.model} ${(model.task ?? "TASK_TENSORS").slice(5)} ${versions.join(" ")}`.toLowerCase();
    return words.every((word) => all.includes(word));
  });
}

/** Shows the models that match the search; `chosen` is the one that is open. */
export function showList(models, chosen) {
  const search = byId("search");
  search.hidden = models.length < SEARCH_FROM;
  const found = matching(models, search.hidden ? "" : search.value);
  const count = `${found.length} of ${models.length} models`;
  const rest = found.length > MOST_SHOWN ? `; the first ${MOST_SHOWN} are shown` : "";
  setText(byId("shown"), models.length === 0 ? "No models yet: the server's repository has none that this token may see." : found.length < models.length || rest ? count + rest : "");
  byId("list").replaceChildren(...found.slice(0, MOST_SHOWN).map((model) => item(model, model.model === chosen)));
}

function item(model, isChosen) {
  const versions = model.versions ?? [];
  const best = versions.findLast((one) => one.state === "STATE_READY") ?? versions.at(-1) ?? {};
  const ready = versions.filter((one) => one.state === "STATE_READY");
  const numbers = versions.length > 1 ? `${versions.length} versions, ${ready.length} ready` : versions.length ? `version ${best.version ?? 0}` : "no version";
  const link = element(
    "a",
    { href: `#model=${encodeURIComponent(model.model)}`, "aria-current": isChosen ? "true" : false },
    element("span", { class: "name" }, model.model),
    element("span", { class: "pill", "data-kind": versions.length ? kindOf(best) : "idle" }, versions.length ? stateOf(best) : "empty"),
    element("span", { class: "hint" }, `${(model.task ?? "TASK_TENSORS").slice(5).toLowerCase()}, ${numbers}`),
  );
  return element("li", {}, link);
}
