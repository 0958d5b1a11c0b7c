// Parses Prometheus' text format, version 0.0.4, as far as the server writes it.

/** Returns samples by name: lists of {labels, value}. */
function parseExposition(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    if (!line || line[0] === "#") continue;
    const brace = line.indexOf("{");
    const end = line.lastIndexOf("}");
    const space = line.indexOf(" ", end + 1);
    const name = line.slice(0, brace < 0 ? space : brace);
    const labels = brace < 0 ? {} : parseLabels(line.slice(brace + 1, end));
    const list = samples.get(name);
    const sample = { labels, value: parseValue(line.slice(space + 1)) };
    if (list) list.push(sample);
    else samples.set(name, [sample]);
  }
  return samples;
}

const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED = { "\\n": "\n", "\\\\": "\\", '\\"': '"' };

function parseLabels(text) {
  const labels = Object.create(null);
  for (const [, name, value] of text.matchAll(LABEL)) {
    labels[name] = value.includes("\\") ? value.replace(/\\./g, (two) => ESCAPED[two] ?? two) : value;
  }
  return labels;
}

function parseValue(text) {
  if (text.startsWith("+Inf")) return Infinity;
  if (text.startsWith("-Inf")) return -Infinity;
  return Number.parseFloat(text);
}
