import { endianness } from "node:os";

import { invalid } from "./errors.js";
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

/** What a tensor holds. `boolean[]` is BOOL, `string[]` is STRING. */
export type Data = Numbers | boolean[] | string[];

/** Types that a typed array alone does not tell: their bits are in a `Uint16Array`. */
export type HalfType = "float16" | "bfloat16";

/** An array of any rank. Without `shape` the client works it out from the model's description. */
export interface Input {
  data: Data;
  shape?: readonly number[];
  dtype?: HalfType;
}

/** A model's output: `dtype` as in prediction.proto without `DATA_TYPE_`, in lower case. */
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
  throw new Error("this client needs a little-endian machine: typed arrays travel as they lie");
}

/** The message of an input. The typed array is not copied before it is written to the wire. */
export function toTensor(name: string, input: Input, shape: readonly number[]): Tensor {
  const count = shape.reduce((product, size) => product * size, 1);
  if (!shape.every((size) => Number.isSafeInteger(size) && size >= 0)) {
    throw invalid(`input '${name}' has shape [${shape.join(", ")}]; sizes are whole numbers from 0 up`);
  }
  if (count !== input.data.length) {
    throw invalid(
      `input '${name}' has ${input.data.length} elements; shape [${shape.join(", ")}] takes ${count}`,
    );
  }
  return { name, dtype: dataType(name, input), shape: [...shape], data: bytes(input.data) };
}

/** An output as it came. Its numbers are a copy, for typed arrays must be aligned. */
export function fromTensor(tensor: Tensor): Output {
  const dtype = DataType[tensor.dtype]?.replace("DATA_TYPE_", "").toLowerCase() ?? "undefined";
  return { dtype, shape: tensor.shape, data: decoded(tensor) };
}

function decoded({ dtype, data, name }: Tensor): Data {
  if (dtype === DataType.DATA_TYPE_BOOL) return Array.from(data, (byte) => byte !== 0);
  if (dtype === DataType.DATA_TYPE_STRING) return strings(data);
  const numbers = CONSTRUCTORS.get(dtype);
  if (numbers === undefined) throw invalid(`output '${name}' has a dtype that is not known: ${dtype}`);
  const aligned = new ArrayBuffer(data.byteLength);
  new Uint8Array(aligned).set(data);
  return new numbers(aligned);
}

function dataType(name: string, { data, dtype }: Input): DataType {
  if (dtype !== undefined) {
    if (!(data instanceof Uint16Array)) {
      throw invalid(`input '${name}' is ${dtype}; expected its bits in a Uint16Array`);
    }
    return HALVES[dtype];
  }
  if (Array.isArray(data)) {
    if (data.every((element) => typeof element === "string")) return DataType.DATA_TYPE_STRING;
    if (data.every((element) => typeof element === "boolean")) return DataType.DATA_TYPE_BOOL;
  }
  for (const [number, constructor] of CONSTRUCTORS) {
    if (data instanceof constructor) return number;
  }
  throw invalid(`input '${name}' is of no known kind; expected a typed array, strings or booleans`);
}

function bytes(data: Data): Buffer {
  if (!Array.isArray(data)) return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  const pieces: Buffer[] = [];
  for (const element of data) {
    if (typeof element === "boolean") {
      pieces.push(Buffer.of(element ? 1 : 0));
      continue;
    }
    const text = Buffer.from(element, "utf8");
    const length = Buffer.alloc(4);
    length.writeUInt32LE(text.length);
    pieces.push(length, text);
  }
  return Buffer.concat(pieces);
}

function strings(data: Buffer): string[] {
  const found: string[] = [];
  for (let position = 0; position < data.length; ) {
    const start = position + 4;
    position = start + data.readUInt32LE(position);
    found.push(data.toString("utf8", start, position));
  }
  return found;
}
