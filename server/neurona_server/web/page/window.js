// Keeps earlier snapshots: two of them give a rate, many give a chart.

const PERIOD = 2; // seconds between two scrapes
const WINDOW = 10; // seconds over which rates and percentiles are computed
const LINE = 150; // maximum points of a line: 5 minutes
const SHORT = 15; // minimum width of a chart in points: 30 seconds

/** Snapshots of the last WINDOW seconds. */
class Snapshots {
  constructor() {
    this.list = [];
  }

  /** Returns true if the server was restarted, or is another one: its counters began at zero. */
  add(snapshot) {
    const last = this.list.at(-1);
    const restarted = last !== undefined && last.started !== snapshot.started;
    if (restarted) this.list = [];
    this.list.push(snapshot);
    while (this.list.length > 2 && snapshot.at - this.list[1].at >= WINDOW) this.list.shift();
    return restarted;
  }

  get now() {
    return this.list.at(-1);
  }

  get then() {
    return this.list[0];
  }

  get before() {
    return this.list.at(-2);
  }
}

/** Points of charts by key; null where a value is unknown. */
class Lines {
  constructor() {
    this.points = new Map();
    this.length = 0;
  }

  /** Adds a point to every line. */
  add(values) {
    this.length = Math.min(LINE, this.length + 1);
    for (const [key, value] of values) {
      let line = this.points.get(key);
      if (!line) this.points.set(key, (line = new Array(this.length - 1).fill(null)));
      line.push(Number.isFinite(value) ? value : null);
      if (line.length > LINE) line.shift();
    }
    for (const key of this.points.keys()) if (!values.has(key)) this.points.delete(key);
  }

  /** Adds a gap to every line: the server did not respond. */
  gap() {
    this.add(new Map([...this.points.keys()].map((key) => [key, null])));
  }

  /** Points that fit into a chart: a page that was just opened has narrow ones. */
  get places() {
    return Math.max(SHORT, this.length);
  }

  of(key) {
    return this.points.get(key) ?? [];
  }
}
