// Numbers, dates and tables of text, as people paste them.

/** The separator of a table: tab or semicolon if its first lines have one, else comma. */
function separatorOf(text) {
  const head = text.split(/\r\n|\r|\n/, 5).join("\n");
  return ["\t", ";"].find((mark) => head.includes(mark)) ?? ",";
}

/** The cells of a CSV text (RFC 4180), row by row; empty lines are left out. */
export function parseCsv(text) {
  const mark = separatorOf(text);
  const rows = [];
  let row = [];
  let cell = "";
  let quoted = false;
  const source = text.replace(/^\uFEFF/, "");
  const endCell = () => {
    row.push(cell.trim());
    cell = "";
  };
  const endRow = () => {
    endCell();
    if (row.some((one) => one !== "")) rows.push(row);
    row = [];
  };
  for (let i = 0; i < source.length; i += 1) {
    const character = source[i];
    if (quoted) {
      if (character !== '"') cell += character;
      else if (source[i + 1] === '"') {
        cell += '"';
        i += 1;
      } else quoted = false;
    } else if (character === '"' && cell.trim() === "") {
      cell = "";
      quoted = true;
    } else if (character === mark) endCell();
    else if (character === "\n" || character === "\r") {
      if (character === "\r" && source[i + 1] === "\n") i += 1;
      endRow();
    } else cell += character;
  }
  if (cell !== "" || row.length) endRow();
  return rows;
}

/** A number as people write it; NaN if it is none. `decimalMark` decides what "1,234" is. */
export function parseNumber(text, decimalMark = "") {
  let plain = text.trim().replace(/[\u00a0\u202f' ]/g, "").replace(/%$/, "");
  if (plain === "") return NaN;
  if (decimalMark === ",") plain = plain.replace(/\./g, "").replace(",", ".");
  else if (decimalMark === ".") plain = plain.replace(/,/g, "");
  else if (/^[+-]?\d+,\d+$/.test(plain)) plain = plain.replace(",", ".");
  else if (/^[+-]?\d{1,3}(,\d{3})+(\.\d*)?$/.test(plain)) plain = plain.replace(/,/g, "");
  const value = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(plain) ? Number(plain) : NaN;
  return text.trim().endsWith("%") ? value / 100 : value;
}

/** Days since 1970-01-01 UTC of the text of an <input type="datetime-local"> or a date; else NaN. */
export function parseDate(text, order = "") {
  const iso = /^(\d{4})-(\d\d?)-(\d\d?)(?:[T ](\d\d?):(\d\d)(?::(\d\d(?:\.\d+)?))?)?/.exec(text.trim());
  const other = /^(\d\d?)[./-](\d\d?)[./-](\d{4})$/.exec(text.trim());
  let parts;
  if (iso) parts = iso.slice(1).map((part) => Number(part ?? 0));
  else if (other) {
    const monthFirst = order === "month-day-year" || (order === "" && text.includes("/"));
    const [first, second, year] = other.slice(1).map(Number);
    parts = monthFirst ? [year, first, second] : [year, second, first];
  } else return NaN;
  const [year, month, day, hour = 0, minute = 0, second = 0] = parts;
  const time = Date.UTC(year, month - 1, day, hour, minute, 0) + second * 1000;
  const date = new Date(time);
  if (date.getUTCMonth() !== month - 1 || date.getUTCDate() !== day) return NaN;
  return time / 86400000;
}

/** The text of a date input for days since 1970-01-01. */
export function formatDate(days) {
  const date = new Date(days * 86400000);
  return Number.isNaN(date.getTime()) ? "" : date.toISOString().slice(0, days % 1 ? 16 : 10);
}

/** Columns of numbers from a pasted table: the first line names them if it has no number. */
export function parseColumns(text, decimalMark = "") {
  const cells = parseCsv(text);
  if (!cells.length) throw new Error("no rows (expected a number in each line, or columns of numbers)");
  const isNumber = (cell) => !Number.isNaN(parseNumber(cell, decimalMark));
  const isMissing = (cell) => /^(|nan|na|n\/a|null|-)$/i.test(cell);
  const hasHead = !cells[0].some(isNumber) && cells.length > 1;
  const names = hasHead ? cells[0] : null;
  const rows = hasHead ? cells.slice(1) : cells;
  const width = rows[0].length;
  const numbers = rows.map((row, i) => {
    const line = i + (hasHead ? 2 : 1);
    if (row.length !== width) throw new Error(`line ${line} has ${row.length} columns (expected ${width})`);
    return row.map((cell) => (isMissing(cell) ? NaN : isNumber(cell) ? parseNumber(cell, decimalMark) : cell));
  });
  return { names, rows: numbers };
}

/** The steps of a sequence from a pasted table: those of its columns that a model reads. */
export function takeColumns(table, columns, count) {
  const { names, rows } = table;
  let picked = null;
  if (names && columns.length) {
    const lower = names.map((name) => name.toLowerCase());
    const places = columns.map((column) => lower.indexOf(column.toLowerCase()));
    if (places.every((place) => place >= 0)) picked = places;
  }
  if (!picked) {
    const width = rows[0].length;
    if (count > 0 && width > count) {
      // A column of times, or of row numbers, stands before the values.
      picked = Array.from({ length: count }, (_, i) => width - count + i);
    } else if (count > 0 && rows.length === 1 && width !== count && count === 1) {
      return takeColumns({ names: null, rows: rows[0].map((value) => [value]) }, columns, count);
    } else picked = rows[0].map((_, i) => i);
  }
  if (count > 0 && picked.length !== count) {
    const named = columns.length ? `: ${columns.join(", ")}` : "";
    throw new Error(`the table has ${picked.length} columns (expected ${count}${named})`);
  }
  return rows.map((row, i) => picked.map((place) => {
    if (typeof row[place] === "string") throw new Error(`row ${i + 1}: ${JSON.stringify(row[place])} is not a number`);
    return row[place];
  }));
}
