import { isUtf8 } from "node:buffer";
import { endianness } from "node:os";

import { invalidArgument } from "./errors.js";
import { DataType, type Tensor } from "./generated/prediction.js";

/** Numbers of a tensor, row by row. */
export type Numbers =
  | Float32Array
  | Float64Array
  | Int8Array
  | Int16Array
  | Int32Array
  | BigInt64Array
  | Uint8Array
  | Uint16Array
  | Uint32Array
  | BigUint64Array;

/**
 * What a tensor holds. `boolean[]` is BOOL, `Text[]` is STRING: each element is a string, or bytes
 * that are not UTF-8.
 */
export type Data = Numbers | boolean[] | Text[];

export type Text = string | Uint8Array;

/** Types that JavaScript has no array for: their bits are in a `Uint16Array`. */
export type HalfType = "float16" | "bfloat16";

/** An array of any rank. Without `shape`, the client infers it from the model's description. */
export interface Input {
  data: Data;
  shape?: readonly number[];
  dtype?: HalfType;
}

/** An output of a model. `dtype` is that of prediction.proto without `DATA_TYPE_`, in lower case. */
export interface Output {
  data: Data;
  shape: number[];
  dtype: string;
}

type Constructor = { new (buffer: ArrayBuffer): Numbers; BYTES_PER_ELEMENT: number };

const CONSTRUCTORS = new Map<DataType, Constructor>([
  [DataType.DATA_TYPE_FLOAT, Float32Array],
  [DataType.DATA_TYPE_DOUBLE, Float64Array],
  [DataType.DATA_TYPE_INT8, Int8Array],
  [DataType.DATA_TYPE_INT16, Int16Array],
  [DataType.DATA_TYPE_INT32, Int32Array],
  [DataType.DATA_TYPE_INT64, BigInt64Array],
  [DataType.DATA_TYPE_UINT8, Uint8Array],
  [DataType.DATA_TYPE_UINT16, Uint16Array],
  [DataType.DATA_TYPE_UINT32, Uint32Array],
  [DataType.DATA_TYPE_UINT64, BigUint64Array],
  [DataType.DATA_TYPE_FLOAT16, Uint16Array],
  [DataType.DATA_TYPE_BFLOAT16, Uint16Array],
]);
const HALVES: Record<HalfType, DataType> = {
  float16: DataType.DATA_TYPE_FLOAT16,
  bfloat16: DataType.DATA_TYPE_BFLOAT16,
};

if (endianness() !== "LE") {
  throw new Error("big-endian machine not supported: typed arrays are sent in native byte order");
}

/** Create the message of an input, without a copy of a typed array. */
export function toTensor(name: string, input: Input, shape: readonly number[]): Tensor {
  const count = shape.reduce((product, size) => product * size, 1);
  if (!shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
    throw invalidArgument(`input '${name}' has shape [${shape.join(", ")}] (expected integers from 0)`);
  }
  if (count !== input.data.length) {
    throw invalidArgument(
      `input '${name}' has ${input.data.length} elements (expected ${count} for shape [${shape.join(", ")}])`,
    );
  }
  return { name, dtype: dataType(name, input), shape: [...shape], data: encodeData(input.data) };
}

/** Decode an output. Its numbers are copied, because typed arrays must be aligned. */
export function fromTensor(tensor: Tensor): Output {
  const dtype = DataType[tensor.dtype]?.replace("DATA_TYPE_", "").toLowerCase() ?? "undefined";
  return { dtype, shape: tensor.shape, data: decodeData(tensor) };
}

function decodeData({ dtype, data, name }: Tensor): Data {
  if (dtype === DataType.DATA_TYPE_BOOL) return Array.from(data, (byte) => byte !== 0);
  if (dtype === DataType.DATA_TYPE_STRING) return decodeStrings(data);
  const numbers = CONSTRUCTORS.get(dtype);
  if (numbers === undefined) throw invalidArgument(`output '${name}' has unknown dtype ${dtype}: update the client`);
  const aligned = new ArrayBuffer(data.byteLength);
  new Uint8Array(aligned).set(data);
  return new numbers(aligned);
}

function dataType(name: string, { data, dtype }: Input): DataType {
  if (dtype !== undefined) {
    if (!(data instanceof Uint16Array)) {
      throw invalidArgument(`input '${name}' is ${dtype} (expected its bits in a Uint16Array)`);
    }
    return HALVES[dtype];
  }
  if (Array.isArray(data)) {
    if (data.every(isText)) return DataType.DATA_TYPE_STRING;
    if (data.every((element) => typeof element === "boolean")) return DataType.DATA_TYPE_BOOL;
  }
  for (const [number, constructor] of CONSTRUCTORS) {
    if (data instanceof constructor) return number;
  }
  throw invalidArgument(`input '${name}' has an unsupported type (expected a typed array, strings or booleans)`);
}

function isText(element: unknown): element is Text {
  return typeof element === "string" || element instanceof Uint8Array;
}

function encodeData(data: Data): Buffer {
  if (!Array.isArray(data)) return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  const pieces: Uint8Array[] = [];
  for (const element of data) {
    if (typeof element === "boolean") {
      pieces.push(Buffer.of(element ? 1 : 0));
      continue;
    }
    const text = typeof element === "string" ? Buffer.from(element, "utf8") : element;
    const length = Buffer.alloc(4);
    length.writeUInt32LE(text.length);
    pieces.push(length, text);
  }
  return Buffer.concat(pieces);
}

function decodeStrings(data: Buffer): Text[] {
  const texts: Text[] = [];
  for (let position = 0; position < data.length; ) {
    const start = position + 4;
    position = start + data.readUInt32LE(position);
    const bytes = data.subarray(start, position);
    texts.push(isUtf8(bytes) ? bytes.toString("utf8") : Buffer.from(bytes));
  }
  return texts;
}
