// What the server has said before: two snapshots make a rate, many make a line.

const PERIOD = 2; // seconds between two looks
const WINDOW = 10; // seconds that figures are of
const LINE = 150; // points of a line at the most: 5 minutes
const SHORT = 15; // and at least: 30 seconds

/** Snapshots of the last WINDOW seconds. */
class Snapshots {
  constructor() {
    this.list = [];
  }

  /** True if what counted up before has begun again: it is another server, or the same anew. */
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

/** Points of lines by a key; null where nothing is known. */
class Lines {
  constructor() {
    this.points = new Map();
    this.length = 0;
  }

  /** One more point for every line. */
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

  /** Nothing was heard for a while. */
  gap() {
    this.add(new Map([...this.points.keys()].map((key) => [key, null])));
  }

  /** How many points a line has room for: a young page has short ones. */
  get places() {
    return Math.max(SHORT, this.length);
  }

  of(key) {
    return this.points.get(key) ?? [];
  }
}
