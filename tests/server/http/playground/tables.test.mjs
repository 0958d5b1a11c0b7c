import assert from "node:assert/strict";
import { test } from "node:test";

import { formatDate, parseColumns, parseCsv, parseDate, parseNumber, takeColumns } from "./tables.js";

test("CSV is read with quotes, other separators and line ends", () => {
  assert.deepEqual(parseCsv('\uFEFFa,b\r\n"x, ""y""",2\r\n\r\n'), [["a", "b"], ['x, "y"', "2"]]);
  assert.deepEqual(parseCsv("1;2\n3;4"), [["1", "2"], ["3", "4"]]);
  assert.deepEqual(parseCsv("1\t2,5\n3\t4,5\n"), [["1", "2,5"], ["3", "4,5"]]);
  assert.deepEqual(parseCsv(""), []);
});

test("numbers are read as people write them", () => {
  assert.equal(parseNumber("1,5"), 1.5);
  assert.equal(parseNumber("1,234", "."), 1234);
  assert.equal(parseNumber("1.234,5", ","), 1234.5);
  assert.equal(parseNumber("1,234,567"), 1234567);
  assert.equal(parseNumber("12 %"), 0.12);
  assert.equal(parseNumber("-.5e3"), -500);
  for (const text of ["", "abc", "1.2.3", "0x10", "1e", "--1"]) assert.ok(Number.isNaN(parseNumber(text)), text);
});

test("dates become days since 1970, and back", () => {
  assert.equal(parseDate("1970-01-02"), 1);
  assert.equal(parseDate("1970-01-01T12:00"), 0.5);
  assert.equal(parseDate("1969-12-31 18:00:00"), -0.25);
  assert.equal(parseDate("03/04/2024", "day-month-year"), parseDate("2024-04-03"));
  assert.equal(parseDate("03/04/2024", "month-day-year"), parseDate("2024-03-04"));
  assert.equal(parseDate("3.4.2024"), parseDate("2024-04-03"));
  for (const text of ["2024-02-30", "soon", "2024", "13/13/2024"]) assert.ok(Number.isNaN(parseDate(text)), text);
  assert.equal(formatDate(0.5), "1970-01-01T12:00");
  assert.equal(parseDate(formatDate(19876)), 19876);
});

test("a table's columns are taken by name, else by place, its times left out", () => {
  const named = parseColumns("date,b,a\n2024-01-01,1,2\n2024-01-02,3,4\n");
  assert.deepEqual(takeColumns(named, ["a", "b"], 2), [[2, 1], [4, 3]]);
  const timed = parseColumns("2024-01-01,5\n2024-01-02,6\n");
  assert.deepEqual(takeColumns(timed, [], 1), [[5], [6]]);
  assert.deepEqual(takeColumns(parseColumns("1, 2, 3"), [], 1), [[3]]);
  assert.deepEqual(takeColumns(parseColumns("1\n\n2\n"), [], 1), [[1], [2]]);
  assert.deepEqual(takeColumns(parseColumns("x\n1\nNA\n"), ["x"], 1), [[1], [NaN]]);
});

test("what is wrong with a table is named", () => {
  assert.throws(() => parseColumns(""), /no rows/);
  assert.throws(() => parseColumns("1,2\n3\n"), /line 2 has 1 columns \(expected 2\)/);
  assert.throws(() => takeColumns(parseColumns("1\n2"), ["p", "q"], 2), /1 columns \(expected 2: p, q\)/);
  assert.throws(() => takeColumns(parseColumns("1\nx2"), [], 1), /row 2: "x2" is not a number/);
});
