// The call of a form as code: Python, curl, grpcurl and Node. A token is never in it.

import { countOf, encodeTensor, toBase64, TYPES } from "./tensors.js";

/** Elements that are written out; more are base64, and more than this many bytes of it a file. */
const MOST_WRITTEN = 200;
const MOST_INLINE = 24000;
const FILE = "request.json";

/** The message that is sent, as JSON. */
export function requestOf({ model, version, topK, rawOutputs, priority, tensors }) {
  return {
    model,
    ...(version ? { version: String(version) } : {}),
    inputs: tensors.map(encodeTensor),
    ...(topK > 1 ? { top_k: topK } : {}),
    ...(rawOutputs ? { raw_outputs: true } : {}),
    ...(priority ? { priority } : {}),
  };
}

/** Whether code reads the request from a file, which is then to be saved. */
export function needsFile(request) {
  return request.inputs.reduce((sum, one) => sum + one.data.length, 0) > MOST_INLINE;
}

/**
 * Code in a language. `call` is what requestOf takes; `server` has `grpc` (a HOST:PORT), `tls`,
 * `http` (the address of this page) and `tokens`.
 */
export function snippet(language, call, server) {
  const request = requestOf(call);
  const isFile = needsFile(request);
  return { python: pythonCode, curl: curlCode, grpcurl: grpcurlCode, node: nodeCode }[language](call, request, isFile, server);
}

/** The name of a request's file, for the languages that read it. */
export const fileName = FILE;

function pythonCode(call, request, isFile, server) {
  const lines = [];
  const needsNumpy = call.tensors.some((one) => !isImage(one) && (one.dtype !== "DATA_TYPE_STRING" || !one.values.every(isText)));
  const isCoded = call.tensors.some((tensor) => isFile || isLong(tensor));
  if (isCoded) lines.push("import base64");
  if (isFile) lines.push("import json");
  if (server.tokens) lines.push("import os");
  if (lines.length) lines.push("");
  lines.push(...(needsNumpy ? ["import numpy as np"] : []), "from neurona_client import Client", "");
  let inputs;
  if (isFile) {
    lines.push(`with open(${JSON.stringify(FILE)}) as file:  # saved from the playground`, "    tensors = {tensor[\"name\"]: tensor for tensor in json.load(file)[\"inputs\"]}", "");
    inputs = call.tensors.map((tensor) => [tensor, pythonFromFile(tensor)]);
  } else inputs = call.tensors.map((tensor) => [tensor, pythonValue(tensor)]);
  // An image is a sample without the batch axis, so the other inputs are too.
  const sample = call.tensors.some(isImage) ? "[0]" : "";
  lines.push("inputs = {", ...inputs.map(([one, value]) => `    ${JSON.stringify(one.name)}: ${value}${isImage(one) ? "" : sample},`), "}");
  const options = [JSON.stringify(server.grpc)];
  if (server.tokens) options.push('token=os.environ["NEURONA_TOKEN"]');
  if (server.tls) options.push("tls=True");
  const more = [
    ...(call.version ? [`version=${call.version}`] : []),
    ...(call.topK > 1 ? [`top_k=${call.topK}`] : []),
    ...(call.rawOutputs ? ["raw_outputs=True"] : []),
  ];
  lines.push(`with Client(${options.join(", ")}) as client:`);
  lines.push(`    result = client.predict(${[JSON.stringify(call.model), "inputs", ...more].join(", ")})`);
  if (call.task === "TASK_CLASSIFICATION") {
    lines.push("    for row in result:", "        for one in row.top:", '            print(f"{one.label}: {one.probability:.4f}")');
  } else if (call.task === "TASK_REGRESSION") {
    lines.push("    for row in result:", "        for value, unit in zip(row.values, row.units):", "            print(value, unit)");
  } else lines.push("    for name, output in result.outputs.items():", "        print(name, output)");
  return `${lines.join("\n")}\n`;
}

const isText = (value) => typeof value === "string";
/** An encoded image, which the Python client takes as one sample. */
const isImage = ({ isImage: flag }) => Boolean(flag);
/** Whether a tensor is written as base64. */
const isLong = (tensor) => isImage(tensor) || (tensor.dtype !== "DATA_TYPE_STRING" && tensor.values.length > MOST_WRITTEN);

function pythonValue(tensor) {
  const { dtype, shape, values } = tensor;
  if (isImage(tensor)) return `base64.b64decode(${JSON.stringify(toBase64(values[0]))})`;
  if (dtype === "DATA_TYPE_STRING") {
    if (values.every(isText)) return pythonList(values, shape, JSON.stringify);
    return `np.array(${pythonList(values, shape, pythonText)}, object)`;
  }
  const type = dtype === "DATA_TYPE_BFLOAT16" ? "np.float32" : TYPES[dtype].numpy; // the client rounds
  if (isLong(tensor)) {
    return `np.frombuffer(base64.b64decode(${JSON.stringify(encodeTensor(tensor).data)}), ${JSON.stringify(TYPES[dtype].code)}).reshape(${pythonShape(shape)})`;
  }
  if (countOf(shape) === 0) return `np.zeros(${pythonShape(shape)}, ${type})`;
  return `np.array(${pythonList(values, shape, (one) => pythonNumber(one, dtype))}, ${type})`;
}

function pythonFromFile(tensor) {
  const { name, dtype, shape, values } = tensor;
  if (isImage(tensor)) {
    return `base64.b64decode(tensors[${JSON.stringify(name)}]["data"])[4:]`; // after its length
  }
  if (dtype === "DATA_TYPE_STRING") return pythonValue({ dtype, shape, values });
  return `np.frombuffer(base64.b64decode(tensors[${JSON.stringify(name)}]["data"]), ${JSON.stringify(TYPES[dtype].code)}).reshape(${pythonShape(shape)})`;
}

const pythonShape = (shape) => (shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`);

function pythonList(values, shape, write) {
  let at = 0;
  const walk = (axis) => (axis === shape.length ? write(values[at++]) : `[${Array.from({ length: shape[axis] }, () => walk(axis + 1)).join(", ")}]`);
  return walk(0);
}

function pythonNumber(value, dtype) {
  if (dtype === "DATA_TYPE_BOOL") return value ? "True" : "False";
  if (Number.isNaN(value)) return "np.nan";
  if (value === Infinity) return "np.inf";
  if (value === -Infinity) return "-np.inf";
  return shortest(value, dtype);
}

/** The shortest decimals that are the same number in the tensor's type. */
function shortest(value, dtype) {
  if (typeof value === "bigint" || dtype === "DATA_TYPE_DOUBLE" || Number.isInteger(value)) return String(value);
  for (let digits = 4; digits < 9; digits += 1) {
    const text = String(Number(value.toPrecision(digits)));
    if (Math.fround(Number(text)) === Math.fround(value)) return text;
  }
  return String(value);
}

function pythonText(value) {
  if (isText(value)) return JSON.stringify(value);
  return `b"${Array.from(value, (byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("")}"`;
}

function curlCode(call, request, isFile, server) {
  const lines = [`curl ${server.http}neurona.v1.Prediction/Predict`, "-H 'Content-Type: application/json'"];
  if (server.tokens) lines.push('-H "Authorization: Bearer $NEURONA_TOKEN"');
  lines.push(isFile ? `--data-binary @${FILE}` : `--data-binary ${shellText(JSON.stringify(request))}`);
  return `${lines.join(" \\\n  ")}\n`;
}

function grpcurlCode(call, request, isFile, server) {
  const lines = [`grpcurl${server.tls ? "" : " -plaintext"}`];
  if (server.tokens) lines.push('-H "Authorization: Bearer $NEURONA_TOKEN"');
  lines.push(isFile ? "-d @" : `-d ${shellText(JSON.stringify(request))}`);
  lines.push(`${server.grpc} neurona.v1.Prediction/Predict${isFile ? ` < ${FILE}` : ""}`);
  return `${lines.join(" \\\n  ")}\n`;
}

const shellText = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function nodeCode(call, request, isFile, server) {
  const lines = [];
  if (isFile) lines.push('import { readFileSync } from "node:fs";');
  lines.push('import { Client } from "neurona";', "");
  if (isFile) lines.push(`const { inputs } = JSON.parse(readFileSync(${JSON.stringify(FILE)}, "utf8")); // saved from the playground`);
  const isCoded = call.tensors.some((tensor) => isFile || isLong(tensor));
  if (isCoded) lines.push('const bytes = (base64) => Uint8Array.from(Buffer.from(base64, "base64"));', "");
  const settings = [
    ...(server.tokens ? ["token: process.env.NEURONA_TOKEN"] : []),
    ...(server.tls ? ["tls: true"] : []),
  ];
  const inputs = call.tensors.map((tensor, i) => `    ${JSON.stringify(tensor.name)}: ${nodeValue(tensor, isFile ? `inputs[${i}].data` : null)},`);
  const options = [
    ...(call.version ? [`version: ${call.version}`] : []),
    ...(call.topK > 1 ? [`topK: ${call.topK}`] : []),
    ...(call.rawOutputs ? ["rawOutputs: true"] : []),
  ];
  lines.push(`const client = new Client(${JSON.stringify(server.grpc)}${settings.length ? `, { ${settings.join(", ")} }` : ""});`);
  lines.push("const result = await client.predict(", `  ${JSON.stringify(call.model)},`, "  {", ...inputs, "  },", `  { ${options.join(", ")} },`.replace("{  }", "{}"), ");");
  if (call.task === "TASK_CLASSIFICATION") {
    lines.push("for (const row of result.rows) for (const { label, probability } of row.top) console.log(label, probability);");
  } else if (call.task === "TASK_REGRESSION") lines.push("for (const row of result.rows) console.log(row.values);");
  else lines.push("for (const [name, output] of Object.entries(result.outputs)) console.log(name, output.shape, output.data);");
  lines.push("client.close();");
  return `${lines.join("\n")}\n`;
}

function nodeValue(tensor, source) {
  const { dtype, shape, values } = tensor;
  const sizes = `shape: [${shape.join(", ")}]`;
  const half = { DATA_TYPE_FLOAT16: "float16", DATA_TYPE_BFLOAT16: "bfloat16" }[dtype];
  const type = half ? `, dtype: "${half}"` : "";
  if (dtype === "DATA_TYPE_STRING") {
    if (isImage(tensor)) return `{ data: [bytes(${source ?? JSON.stringify(encodeTensor(tensor).data)}).slice(4)], ${sizes} }`; // after its length
    const texts = Array.from(values, (one) => (isText(one) ? JSON.stringify(one) : `Uint8Array.of(${[...one].join(", ")})`));
    return `{ data: [${texts.join(", ")}], ${sizes} }`;
  }
  if (dtype === "DATA_TYPE_BOOL") {
    if (source || isLong(tensor)) return `{ data: Array.from(bytes(${source ?? JSON.stringify(encodeTensor(tensor).data)}), Boolean), ${sizes} }`;
    return `{ data: [${Array.from(values, (one) => (one ? "true" : "false")).join(", ")}], ${sizes} }`;
  }
  const array = TYPES[dtype].array.name;
  if (source || isLong(tensor) || half) {
    const text = source ?? JSON.stringify(encodeTensor(tensor).data);
    const decode = source || isLong(tensor) ? `bytes(${text})` : `Uint8Array.from(Buffer.from(${text}, "base64"))`;
    return `{ data: new ${array}(${decode}.buffer), ${sizes}${type} }`;
  }
  const numbers = Array.from(values, (one) => (typeof one === "bigint" ? `${one}n` : Number.isFinite(one) ? shortest(one, dtype) : String(one)));
  return `{ data: ${array}.of(${numbers.join(", ")}), ${sizes} }`;
}
