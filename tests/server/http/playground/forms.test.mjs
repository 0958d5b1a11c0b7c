import assert from "node:assert/strict";
import { test } from "node:test";

import { fieldsOf, formsOf, groupValues, imageLayout, readInputs, skeleton, storedSize } from "./forms.js";

function input(tensor, words = {}, sequences = undefined) {
  const name = "x";
  return readInputs({ inputs: [{ name, dtype: "DATA_TYPE_FLOAT", ...tensor }], metadata: { inputs: [{ name, ...words }] }, sequences })[0];
}

const sizes = (...shape) => ({ shape: shape.map(String) });

test("each kind of input gets its form first, and JSON last", () => {
  const cases = [
    ["image", input(sizes(-1, 8, 8), { unit: "grey level 0..16" })],
    ["image", input(sizes(-1, 3, 224, 224))],
    ["image", input(sizes(1, 240, 320, 3))],
    ["image", input({ ...sizes(-1, 28, 28), dtype: "DATA_TYPE_UINT8" })],
    ["image", input(sizes(-1, 5), { image: { width: 5 } })],
    ["sound", input(sizes(-1, -1), { sample_rate: 8000, unit: "amplitude -1..1" })],
    ["series", input(sizes(-1, -1, 1), { window: "22" })],
    ["series", input({ ...sizes(-1, -1, 12), axes: ["batch", "time", ""] })],
    ["series", input(sizes(-1, 30, 2), {}, { time_axes: { x: 1 } })],
    ["image", input({ ...sizes(-1, -1, 8), axes: ["batch", "time", ""] }, { unit: "grey level 0..16" })],
    ["fields", input(sizes(-1, 4))],
    ["fields", input(sizes(-1))],
    ["fields", input({ ...sizes(-1), dtype: "DATA_TYPE_STRING" })],
    ["fields", input({ ...sizes(-1, 1), dtype: "DATA_TYPE_STRING" })],
    ["characters", input({ ...sizes(-1, -1), dtype: "DATA_TYPE_STRING", axes: ["batch", "time"] })],
    ["json", input(sizes(-1, 500))],
    ["json", input(sizes(-1, -1, -1))],
    ["json", input({ any_shape: true })],
    ["json", input(sizes(3, 4))],
    ["json", input({ ...sizes(-1, 2, 3), dtype: "DATA_TYPE_STRING" })],
  ];
  for (const [form, one] of cases) {
    const forms = formsOf(one);
    assert.equal(forms[0], form, JSON.stringify(one));
    assert.equal(forms.at(-1), "json");
  }
  assert.deepEqual(formsOf(input({ ...sizes(-1), dtype: "DATA_TYPE_INT64" }, { lengths_of: "s" })), ["lengths"]);
});

test("where an image's colours are is found", () => {
  assert.deepEqual(imageLayout(input(sizes(-1, 3, 32, 48))), { height: 32, width: 48, channels: 3, last: false, levels: null });
  assert.equal(imageLayout(input(sizes(-1, 32, 48, 1))).last, true);
  assert.deepEqual(imageLayout(input(sizes(-1, 8, 8), { unit: "-1 .. 1" })).levels, [-1, 1]);
  assert.equal(imageLayout(input(sizes(-1, 8, 8))), null);
  const scaled = input(sizes(-1, 32, 32), { unit: "grey level 0..255", description: "brought to 32 x 32 from 28 x 28" });
  assert.deepEqual(storedSize(scaled, imageLayout(scaled)), { width: 28, height: 28 });
});

test("fields have names, types and examples of their columns", () => {
  const row = input(sizes(-1, 3), { columns: ["area", "built", "rooms"], date_columns: ["built"], example: "[70.5, 19000, null]" });
  assert.deepEqual(fieldsOf(row).map(({ name, type, example }) => [name, type, example]), [["area", "number", 70.5], ["built", "date", 19000], ["rooms", "number", null]]);
  assert.deepEqual(fieldsOf(input({ ...sizes(-1), dtype: "DATA_TYPE_STRING" }, { categories: ["a"] }))[0].type, "choice");
  assert.equal(fieldsOf(input(sizes(-1, 1)))[0].name, "x");
  assert.equal(fieldsOf(input(sizes(-1, 2)))[1].name, "x 2");
});

test("JSON begins with the input's shape, or with its example", () => {
  assert.deepEqual(skeleton(input(sizes(-1, 2, 3))), [[[0, 0, 0], [0, 0, 0]]]);
  assert.deepEqual(skeleton(input(sizes())), 0);
  assert.deepEqual(skeleton(input({ ...sizes(2), dtype: "DATA_TYPE_BOOL" })), [false, false]);
  assert.deepEqual(skeleton(input(sizes(-1, 3, 224, 224))), { shape: [1, 3, 224, 224], fill: 0 });
  assert.deepEqual(skeleton(input(sizes(-1, 2), { example: "[1, 2]" })), [[1, 2]]);
  assert.deepEqual(skeleton(input(sizes(-1, 2), { example: "[1, " })), [[0, 0]]);
});

test("the bounds of an interval are put with their value", () => {
  const groups = groupValues([
    { name: "price", unit: "EUR" },
    { name: "price, lower 90 %", unit: "EUR", quantile: 0.05 },
    { name: "price, upper 90 %", unit: "EUR", quantile: 0.95 },
    { name: "rent" },
  ]);
  assert.deepEqual(groups.map(({ name, index, bounds }) => [name, index, bounds.map((one) => one.index)]), [["price", 0, [1, 2]], ["rent", 3, []]]);
});
