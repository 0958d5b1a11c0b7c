// The table of models: a row for each version.

const STATES = { ready: "good", loading: "busy", draining: "busy", failed: "bad", unloaded: "idle" };

/** Columns: `key` is the value to sort by; numbers are sorted from the largest first. */
const COLUMNS = [
  { id: "model", name: "Model", key: (f) => f.model },
  { id: "state", name: "State", key: (f) => (f.problem || f.degraded ? 0 : 1) + f.state },
  { id: "rate", name: "Requests/s", key: (f) => f.rate, number: true },
  { id: "errors", name: "Errors/s", key: (f) => f.errorRate, number: true },
  { id: "p50", name: "p50", key: (f) => f.p50 ?? -1, number: true, title: "Half of the requests take at most this long" },
  { id: "p99", name: "p99", key: (f) => f.p99 ?? -1, number: true, title: "99 % of the requests take at most this long" },
  { id: "batch", name: "Rows per run", key: (f) => f.batch ?? -1, number: true },
  { id: "queue", name: "Queued rows", key: (f) => f.queue, number: true },
  { id: "oldest", name: "Oldest", key: (f) => f.oldest, number: true },
  { id: "provider", name: "Provider", key: (f) => f.provider },
];

const OBJECTIVE_SHARE = 0.99; // as neurona:objective:missed_ratio of the alerts

const byName = new Intl.Collator("en", { numeric: true }).compare;

/** Rounds down: "100 %" is said only if every request met the objective. */
function showObjective({ objective, met }) {
  if (objective === undefined) return "";
  if (met === undefined) return `objective ${showSeconds(objective)}`;
  return `${Math.floor(met * 1e4 + 1e-6) / 100} % within ${showSeconds(objective)}`;
}

class Table {
  constructor(table, changed) {
    this.body = table.querySelector("tbody");
    this.rows = new Map();
    this.order = { id: "model", down: false };
    this.headers = COLUMNS.map((column) => {
      const button = element("button", { type: "button" }, column.name);
      if (column.title) button.title = column.title;
      const cell = element("th", { scope: "col", role: "columnheader", class: column.id }, button);
      button.addEventListener("click", () => {
        const again = this.order.id === column.id;
        this.order = { id: column.id, down: again ? !this.order.down : Boolean(column.number) };
        changed();
      });
      return cell;
    });
    table.querySelector("thead tr").append(...this.headers);
  }

  /** Shows these versions in order, with their charts from `lines`. */
  show(figures, lines) {
    const column = COLUMNS.find(({ id }) => id === this.order.id);
    this.headers.forEach((cell, i) => {
      const direction = this.order.down ? "descending" : "ascending";
      cell.setAttribute("aria-sort", COLUMNS[i] === column ? direction : "none");
    });
    const sign = this.order.down ? -1 : 1;
    const sorted = [...figures].sort((a, b) => {
      const [x, y] = [column.key(a), column.key(b)];
      const ordered = typeof x === "number" ? x - y : byName(x, y);
      return sign * ordered || byName(a.model, b.model) || byName(a.version, b.version);
    });
    const keys = new Set(sorted.map(({ key }) => key));
    for (const [key, row] of this.rows) {
      if (!keys.has(key)) {
        row.node.remove();
        this.rows.delete(key);
      }
    }
    sorted.forEach((figure, i) => {
      const row = this.rows.get(figure.key) ?? this.make(figure);
      this.fill(row, figure);
      drawLine(row.svg, figure.hasRequests ? lines.of(figure.key) : [], lines.places);
      if (this.body.children[i] !== row.node) this.body.insertBefore(row.node, this.body.children[i] ?? null);
    });
  }

  make(figure) {
    const cells = {};
    const node = element("tr", { role: "row" });
    for (const { id, name } of COLUMNS) {
      const first = id === "model";
      const attributes = { class: id, "data-name": name, role: first ? "rowheader" : "cell" };
      cells[id] = element(first ? "th" : "td", first ? { ...attributes, scope: "row" } : attributes);
      node.append(cells[id]);
    }
    const labels = element("span", { class: "labels" });
    cells.model.append(
      element("span", { class: "name" }, figure.model),
      element("span", { class: "version" }, `/${figure.version}`),
      labels,
    );
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("aria-hidden", "true");
    const rate = element("span");
    cells.rate.append(svg, rate);
    const [state, flags] = [element("span", { class: "pill" }), element("span", { class: "flags" })];
    cells.state.append(state, flags);
    const [errors, outcomes] = [element("span"), element("span", { class: "outcomes" })];
    cells.errors.append(errors, outcomes);
    const [batch, padding] = [element("span"), element("span", { class: "padding" })];
    padding.title = "Steps that are padding, since sequences of different lengths shared a run";
    cells.batch.append(batch, padding);
    const [p99, objective] = [element("span"), element("span", { class: "objective" })];
    objective.title = "Admitted requests of the last 5 minutes that met the latency objective";
    cells.p99.append(p99, objective);
    const row = { node, cells, labels, svg, rate, state, flags, errors, outcomes, p99, objective, batch, padding, shown: "" };
    this.rows.set(figure.key, row);
    return row;
  }

  fill(row, figure) {
    const { cells } = row;
    const tags = [...figure.labels].sort(byName);
    if (figure.share !== undefined && figure.share > 0 && figure.share < 1) {
      tags.push(`${Number((figure.share * 100).toPrecision(3))} % of requests`);
    }
    if (figure.sessions) tags.push(`${showCount(figure.sessions)} ${figure.sessions === 1 ? "session" : "sessions"}`);
    if (row.shown !== tags.join("\n")) {
      row.shown = tags.join("\n");
      row.labels.replaceChildren(...tags.map((tag) => element("span", { class: "tag" }, tag)));
    }
    row.state.dataset.kind = STATES[figure.state] ?? "idle";
    setText(row.state, figure.state || "unknown");
    const flags = [];
    if (figure.problem) flags.push("problem: see the log");
    if (figure.degraded) flags.push("degraded");
    if (figure.loading !== undefined) flags.push(`loading for ${showSeconds(figure.loading)}`);
    setText(row.flags, flags.join(", "));
    row.node.classList.toggle("failing", figure.problem || figure.failed > 0);
    const served = figure.hasRequests || figure.state === "ready";
    setText(row.rate, served ? showRate(figure.rate) : NO_VALUE);
    setText(row.errors, served ? showRate(figure.errorRate) : NO_VALUE);
    setText(row.outcomes, figure.failed ? showErrors(figure.errors, figure.seconds) : "");
    setText(cells.p50, showSeconds(figure.p50));
    setText(row.p99, showSeconds(figure.p99));
    setText(row.objective, showObjective(figure));
    row.objective.classList.toggle("missed", figure.met < OBJECTIVE_SHARE);
    setText(row.batch, Number.isFinite(figure.batch) ? figure.batch.toFixed(1) : NO_VALUE);
    const padded = figure.steps ? figure.padding / (figure.steps + figure.padding) : 0;
    setText(row.padding, padded >= 0.005 ? `${Math.round(100 * padded)} % padding` : "");
    setText(cells.queue, served ? showCount(figure.queue) : NO_VALUE);
    setText(cells.oldest, figure.queue ? showSeconds(figure.oldest) : NO_VALUE);
    setText(cells.provider, figure.provider.replace(/ExecutionProvider$/, "") || NO_VALUE);
  }
}
