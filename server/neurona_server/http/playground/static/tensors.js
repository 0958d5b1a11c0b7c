// Tensors as the JSON form of prediction.proto has them: elements as base64, sizes as text.

/** Facts of each element type. `array` is that of JavaScript, `numpy` and `node` name it in code. */
export const TYPES = {
  DATA_TYPE_FLOAT: { name: "float32", array: Float32Array, numpy: "np.float32", code: "<f4" },
  DATA_TYPE_UINT8: { name: "uint8", array: Uint8Array, numpy: "np.uint8", code: "<u1" },
  DATA_TYPE_INT8: { name: "int8", array: Int8Array, numpy: "np.int8", code: "<i1" },
  DATA_TYPE_UINT16: { name: "uint16", array: Uint16Array, numpy: "np.uint16", code: "<u2" },
  DATA_TYPE_INT16: { name: "int16", array: Int16Array, numpy: "np.int16", code: "<i2" },
  DATA_TYPE_INT32: { name: "int32", array: Int32Array, numpy: "np.int32", code: "<i4" },
  DATA_TYPE_INT64: { name: "int64", array: BigInt64Array, numpy: "np.int64", code: "<i8" },
  DATA_TYPE_STRING: { name: "string", numpy: "object" },
  DATA_TYPE_BOOL: { name: "bool", array: Uint8Array, numpy: "np.bool_", code: "?" },
  DATA_TYPE_FLOAT16: { name: "float16", array: Uint16Array, numpy: "np.float16", code: "<f2" },
  DATA_TYPE_DOUBLE: { name: "float64", array: Float64Array, numpy: "np.float64", code: "<f8" },
  DATA_TYPE_UINT32: { name: "uint32", array: Uint32Array, numpy: "np.uint32", code: "<u4" },
  DATA_TYPE_UINT64: { name: "uint64", array: BigUint64Array, numpy: "np.uint64", code: "<u8" },
  DATA_TYPE_BFLOAT16: { name: "bfloat16", array: Uint16Array, numpy: "np.uint16", code: "<u2" },
};

/** Type of numbers with a fraction. */
export function isFloat(dtype) {
  return ["DATA_TYPE_FLOAT", "DATA_TYPE_DOUBLE", "DATA_TYPE_FLOAT16", "DATA_TYPE_BFLOAT16"].includes(dtype);
}

const BOUNDS = {
  DATA_TYPE_UINT8: [0, 255], DATA_TYPE_INT8: [-128, 127], DATA_TYPE_UINT16: [0, 65535],
  DATA_TYPE_INT16: [-32768, 32767], DATA_TYPE_INT32: [-(2 ** 31), 2 ** 31 - 1], DATA_TYPE_UINT32: [0, 2 ** 32 - 1],
};
/** What is as large or larger would be rounded to infinity. */
const LARGEST = { DATA_TYPE_FLOAT: 2 ** 128 - 2 ** 103, DATA_TYPE_BFLOAT16: 2 ** 128 - 2 ** 119, DATA_TYPE_FLOAT16: 65520 };
const BIG = { DATA_TYPE_INT64: [-(2n ** 63n), 2n ** 63n - 1n], DATA_TYPE_UINT64: [0n, 2n ** 64n - 1n] };

/** The number of elements of a shape. */
export function countOf(shape) {
  return shape.reduce((product, size) => product * size, 1);
}

/** One element of a type, from what a person or a JSON text has; throws an Error that says why not. */
export function toElement(value, dtype) {
  if (dtype === "DATA_TYPE_STRING") {
    if (typeof value !== "string") throw new Error(`${show(value)} is not text (expected a string)`);
    return value;
  }
  if (dtype === "DATA_TYPE_BOOL") {
    if (value === true || value === 1) return 1;
    if (value === false || value === 0) return 0;
    throw new Error(`${show(value)} is not a truth value (expected true or false)`);
  }
  if (BIG[dtype]) {
    const big = toBigInt(value);
    if (big < BIG[dtype][0] || big > BIG[dtype][1]) throw new Error(`${big} does not fit ${TYPES[dtype].name}`);
    return big;
  }
  const number = toNumber(value);
  if (isFloat(dtype)) {
    if (Number.isFinite(number) && Math.abs(number) >= (LARGEST[dtype] ?? Infinity)) throw new Error(`${show(value)} does not fit ${TYPES[dtype].name}`);
    return number;
  }
  if (!Number.isInteger(number)) throw new Error(`${show(value)} is not a whole number (expected ${TYPES[dtype].name})`);
  const [lowest, highest] = BOUNDS[dtype];
  if (number < lowest || number > highest) throw new Error(`${number} does not fit ${TYPES[dtype].name} (expected ${lowest} to ${highest})`);
  return number;
}

function toNumber(value) {
  if (typeof value === "number") return value;
  if (typeof value === "bigint") return Number(value);
  if (value === null) return NaN;
  if (typeof value === "string") {
    const text = value.trim();
    const special = { nan: NaN, infinity: Infinity, "-infinity": -Infinity, inf: Infinity, "-inf": -Infinity };
    if (text.toLowerCase() in special) return special[text.toLowerCase()];
    if (text !== "" && Number.isFinite(Number(text))) return Number(text);
  }
  throw new Error(`${show(value)} is not a number`);
}

function toBigInt(value) {
  if (typeof value === "bigint") return value;
  if (typeof value === "number" && Number.isInteger(value)) {
    if (!Number.isSafeInteger(value)) throw new Error(`${value} is not exact in JSON (expected it in quotes)`);
    return BigInt(value);
  }
  if (typeof value === "string" && /^\s*-?\d+\s*$/.test(value)) return BigInt(value.trim());
  throw new Error(`${show(value)} is not a whole number`);
}

function show(value) {
  const text = typeof value === "string" ? JSON.stringify(value) : JSON.stringify(value) ?? String(value);
  return text.length > 40 ? `${text.slice(0, 37)}...` : text;
}

/** A tensor's elements as base64, little-endian. Strings may be Uint8Array. */
export function encodeTensor({ name, dtype, shape, values }) {
  const count = countOf(shape);
  if (values.length !== count) throw new Error(`input ${name} has ${values.length} elements (expected ${count})`);
  return { name, dtype, shape: shape.map(String), data: toBase64(toBytes(values, dtype)) };
}

function toBytes(values, dtype) {
  if (dtype === "DATA_TYPE_STRING") return stringBytes(values);
  const { array: TypedArray } = TYPES[dtype];
  let typed;
  if (values instanceof TypedArray) typed = values;
  else if (dtype === "DATA_TYPE_FLOAT16") typed = Uint16Array.from(values, toHalf);
  else if (dtype === "DATA_TYPE_BFLOAT16") typed = Uint16Array.from(values, toBfloat);
  else typed = TypedArray.from(values);
  return new Uint8Array(typed.buffer, typed.byteOffset, typed.byteLength);
}

function stringBytes(values) {
  const encoder = new TextEncoder();
  const parts = Array.from(values, (value) => (typeof value === "string" ? encoder.encode(value) : value));
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + 4 + part.length, 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const part of parts) {
    view.setUint32(at, part.length, true);
    bytes.set(part, at + 4);
    at += 4 + part.length;
  }
  return bytes;
}

/** The tensor of an answer: numbers, BigInt, booleans, or strings (Uint8Array where not UTF-8). */
export function decodeTensor(tensor) {
  const dtype = tensor.dtype ?? "DATA_TYPE_UNDEFINED";
  const shape = (tensor.shape ?? []).map(Number);
  const bytes = fromBase64(tensor.data ?? "");
  return { name: tensor.name ?? "", dtype, shape, values: fromBytes(bytes, dtype, countOf(shape)) };
}

function fromBytes(bytes, dtype, count) {
  if (dtype === "DATA_TYPE_STRING") return stringsFrom(bytes, count);
  const type = TYPES[dtype];
  if (!type) return [];
  const { array: TypedArray } = type;
  const typed = new TypedArray(bytes.buffer, 0, Math.floor(bytes.length / TypedArray.BYTES_PER_ELEMENT));
  if (dtype === "DATA_TYPE_FLOAT16") return Array.from(typed, fromHalf);
  if (dtype === "DATA_TYPE_BFLOAT16") return Array.from(typed, fromBfloat);
  if (dtype === "DATA_TYPE_BOOL") return Array.from(typed, Boolean);
  return typed;
}

function stringsFrom(bytes, count) {
  const view = new DataView(bytes.buffer);
  const strict = new TextDecoder("utf-8", { fatal: true });
  const values = [];
  for (let at = 0; values.length < count && at + 4 <= bytes.length; ) {
    const length = view.getUint32(at, true);
    const part = bytes.slice(at + 4, at + 4 + length);
    try {
      values.push(strict.decode(part));
    } catch {
      values.push(part);
    }
    at += 4 + length;
  }
  return values;
}

export function toBase64(bytes) {
  let text = "";
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}

export function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

const SCRATCH = new DataView(new ArrayBuffer(4));

function floatBits(value) {
  SCRATCH.setFloat32(0, value);
  return SCRATCH.getUint32(0);
}

function floatOf(bits) {
  SCRATCH.setUint32(0, bits >>> 0);
  return SCRATCH.getFloat32(0);
}

/** The upper half of a float32, rounded to the nearest, to the even one of two. */
export function toBfloat(value) {
  const bits = floatBits(value);
  if (Number.isNaN(value)) return (bits >>> 16) | 0x40;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

export function fromBfloat(bits) {
  return floatOf(bits << 16);
}

/** The bits of a half-precision number, rounded to the nearest, to the even one of two. */
export function toHalf(value) {
  const sign = Object.is(value, -0) || value < 0 ? 0x8000 : 0;
  const size = Math.abs(value);
  if (Number.isNaN(value)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;
  if (size < 2 ** -14) return sign | toEven(size * 2 ** 24);
  const exponent = Math.floor(Math.log2(size));
  const fixed = size < 2 ** exponent ? exponent - 1 : size >= 2 ** (exponent + 1) ? exponent + 1 : exponent;
  // A fraction that rounds up to 1024 carries into the exponent.
  return sign | (((fixed + 15) << 10) + toEven((size / 2 ** fixed - 1) * 1024));
}

function toEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 === 1) ? below + 1 : below;
}

export function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** Nested lists of at most `limit` elements of a flat array; what is left out is the text "…". */
export function nest(values, shape, limit = Infinity) {
  let left = limit;
  const walk = (at, axis, stride) => {
    if (axis === shape.length) {
      left -= 1;
      return values[at];
    }
    const step = stride / shape[axis];
    const list = [];
    for (let i = 0; i < shape[axis]; i += 1) {
      if (left <= 0) {
        list.push("…");
        break;
      }
      list.push(walk(at + i * step, axis + 1, step));
    }
    return list;
  };
  return walk(0, 0, countOf(shape));
}

/** Shape and elements of nested lists; throws an Error if lists of one depth differ in length. */
export function flatten(nested) {
  const shape = [];
  for (let level = nested; Array.isArray(level); level = level[0]) shape.push(level.length);
  const values = [];
  const walk = (value, axis) => {
    if (axis === shape.length) {
      if (Array.isArray(value)) throw new Error("lists are nested to different depths (expected one depth)");
      values.push(value);
      return;
    }
    if (!Array.isArray(value) || value.length !== shape[axis]) {
      const length = Array.isArray(value) ? value.length : "no list";
      throw new Error(`lists on axis ${axis} have different lengths: ${length} (expected ${shape[axis]})`);
    }
    for (const each of value) walk(each, axis + 1);
  };
  walk(nested, 0);
  return { shape, values };
}
