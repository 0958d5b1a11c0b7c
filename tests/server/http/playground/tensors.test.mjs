import assert from "node:assert/strict";
import { test } from "node:test";

import { decodeTensor, encodeTensor, flatten, fromBfloat, fromHalf, nest, toBfloat, toElement, toHalf } from "./tensors.js";

test("every bit pattern of a half-precision number is read and written back", () => {
  for (let bits = 0; bits < 65536; bits += 1) {
    const value = fromHalf(bits);
    if (Number.isNaN(value)) assert.equal(toHalf(value), 0x7e00);
    else assert.equal(toHalf(value), bits);
  }
});

test("every bit pattern of a bfloat16 is read and written back", () => {
  for (let bits = 0; bits < 65536; bits += 1) {
    const value = fromBfloat(bits);
    if (!Number.isNaN(value)) assert.equal(toBfloat(value), bits);
  }
  assert.ok(Number.isNaN(fromBfloat(toBfloat(NaN))));
});

test("numbers between two halves go to the nearest, and to the even one of two", () => {
  assert.equal(fromHalf(toHalf(1 + 2 ** -11)), 1);
  assert.equal(fromHalf(toHalf(1 + 3 * 2 ** -11)), 1 + 2 ** -9);
  assert.equal(fromHalf(toHalf(65519.9)), 65504);
  assert.equal(fromHalf(toHalf(65520)), Infinity);
  assert.equal(toHalf(1.99999), 0x4000);
  assert.equal(fromBfloat(toBfloat(1 + 2 ** -8)), 1);
});

test("tensors are the same after a way to the server and back", () => {
  const cases = [
    ["DATA_TYPE_FLOAT", [1.5, NaN, -Infinity]],
    ["DATA_TYPE_DOUBLE", [0.1, -0, 1e300]],
    ["DATA_TYPE_INT64", [-(2n ** 63n), 2n ** 63n - 1n, 0n]],
    ["DATA_TYPE_UINT64", [0n, 2n ** 64n - 1n, 7n]],
    ["DATA_TYPE_INT8", [-128, 127, 0]],
    ["DATA_TYPE_UINT16", [0, 65535, 9]],
    ["DATA_TYPE_FLOAT16", [0.5, -2, 65504]],
    ["DATA_TYPE_BFLOAT16", [0.5, -2, 1]],
    ["DATA_TYPE_STRING", ["", "Zürich 🎈", "\u2028'\""]],
  ];
  for (const [dtype, values] of cases) {
    const decoded = decodeTensor(encodeTensor({ name: "x", dtype, shape: [3], values }));
    assert.deepEqual(Array.from(decoded.values), values, dtype);
    assert.deepEqual(decoded.shape, [3]);
  }
  const truth = decodeTensor(encodeTensor({ name: "x", dtype: "DATA_TYPE_BOOL", shape: [2], values: [1, 0] }));
  assert.deepEqual(truth.values, [true, false]);
});

test("strings that are no UTF-8 stay bytes", () => {
  const bytes = Uint8Array.of(0xff, 0, 0x41);
  const { values } = decodeTensor(encodeTensor({ name: "x", dtype: "DATA_TYPE_STRING", shape: [1], values: [bytes] }));
  assert.deepEqual(values[0], bytes);
});

test("an element that does not fit its type is named", () => {
  assert.throws(() => toElement(300, "DATA_TYPE_UINT8"), /300 does not fit uint8 \(expected 0 to 255\)/);
  assert.throws(() => toElement(1.5, "DATA_TYPE_INT32"), /1.5 is not a whole number/);
  assert.throws(() => toElement("x", "DATA_TYPE_FLOAT"), /"x" is not a number/);
  assert.throws(() => toElement(2 ** 53, "DATA_TYPE_INT64"), /expected it in quotes/);
  assert.throws(() => toElement("9223372036854775808", "DATA_TYPE_INT64"), /does not fit int64/);
  assert.throws(() => toElement(1, "DATA_TYPE_STRING"), /expected a string/);
  assert.throws(() => toElement("1e39", "DATA_TYPE_FLOAT"), /"1e39" does not fit float32/);
  assert.throws(() => toElement(-65520, "DATA_TYPE_FLOAT16"), /does not fit float16/);
  assert.equal(toElement(3.4028235e38, "DATA_TYPE_FLOAT"), 3.4028235e38);
  assert.equal(toElement(1e39, "DATA_TYPE_DOUBLE"), 1e39);
  assert.throws(() => toElement("yes", "DATA_TYPE_BOOL"), /expected true or false/);
  assert.equal(toElement("9007199254740993", "DATA_TYPE_INT64"), 9007199254740993n);
  assert.ok(Number.isNaN(toElement(null, "DATA_TYPE_FLOAT")));
  assert.equal(toElement("-inf", "DATA_TYPE_FLOAT"), -Infinity);
});

test("nested lists become a shape and elements, and back, cut at a limit", () => {
  assert.deepEqual(flatten([[1, 2, 3], [4, 5, 6]]), { shape: [2, 3], values: [1, 2, 3, 4, 5, 6] });
  assert.deepEqual(flatten(7), { shape: [], values: [7] });
  assert.deepEqual(flatten([]), { shape: [0], values: [] });
  assert.throws(() => flatten([[1, 2], [3]]), /axis 1 have different lengths: 1 \(expected 2\)/);
  assert.throws(() => flatten([1, [2]]), /different depths/);
  assert.deepEqual(nest([1, 2, 3, 4], [2, 2]), [[1, 2], [3, 4]]);
  assert.deepEqual(nest([1, 2, 3, 4], [2, 2], 3), [[1, 2], [3, "…"]]);
});
