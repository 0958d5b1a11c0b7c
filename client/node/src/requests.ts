import { invalid } from "./errors.js";
import { Priority, type DescribeModelResponse, type PredictRequest } from "./generated/prediction.js";
import { toTensor, type Data, type Input } from "./tensors.js";

/** One input of a model that has one, or inputs by name. */
export type Inputs = Data | Input | Record<string, Data | Input>;

export interface PredictOptions {
  /** Which version answers; not together with `label`. */
  version?: number;
  /** A name that moves from version to version: "latest" always exists. */
  label?: string;
  /** Classification: how many classes a row. */
  topK?: number;
  /** The model's output tensors too. */
  rawOutputs?: boolean;
  priority?: "normal" | "high" | "low";
  /** From now to the answer, in milliseconds; what is late never runs. */
  timeoutMs?: number;
  /** Its abort takes the call back. */
  signal?: AbortSignal;
}

const PRIORITIES = {
  normal: Priority.PRIORITY_NORMAL,
  high: Priority.PRIORITY_HIGH,
  low: Priority.PRIORITY_LOW,
};

/** Whether the model's description is needed: a name or a shape is left to us. */
export function incomplete(inputs: Inputs): boolean {
  if (isData(inputs) || isInput(inputs)) return true;
  return Object.values(inputs).some((one) => isData(one) || one.shape === undefined);
}

/** `described` may be missing where every input has its name and its shape. */
export function toRequest(
  model: string,
  inputs: Inputs,
  options: PredictOptions,
  described?: DescribeModelResponse,
): PredictRequest {
  if (options.version !== undefined && options.label !== undefined) {
    throw invalid("expected a version or a label, not both");
  }
  const byName = named(model, inputs, described);
  return {
    model,
    which:
      options.version !== undefined
        ? { $case: "version", value: options.version }
        : options.label !== undefined
          ? { $case: "label", value: options.label }
          : undefined,
    inputs: Object.entries(byName).map(([name, one]) => {
      const input = isData(one) ? { data: one } : one;
      return toTensor(name, input, input.shape ?? inferred(model, name, input.data.length, described));
    }),
    topK: options.topK ?? 1,
    rawOutputs: options.rawOutputs ?? false,
    priority: PRIORITIES[options.priority ?? "normal"],
  };
}

function named(
  model: string,
  inputs: Inputs,
  described?: DescribeModelResponse,
): Record<string, Data | Input> {
  if (!isData(inputs) && !isInput(inputs)) return inputs;
  const needed = described?.inputs.filter((one) => !one.optional) ?? [];
  const [only] = needed;
  if (only === undefined || needed.length > 1) {
    const names = needed.map((one) => one.name).join(", ");
    throw invalid(`model '${model}' has ${needed.length} inputs (${names}); expected them by name`);
  }
  return { [only.name]: inputs };
}

/** The shape of so many elements, where the model leaves one size free at the most. */
function inferred(
  model: string,
  name: string,
  count: number,
  described?: DescribeModelResponse,
): number[] {
  const input = described?.inputs.find((one) => one.name === name);
  if (input === undefined) throw invalid(`model '${model}' has no input '${name}'`);
  const free = input.shape.filter((size) => size < 0).length;
  const one = input.shape.reduce((product, size) => (size < 0 ? product : product * size), 1);
  if (free > 1) {
    throw invalid(`input '${name}' of shape [${input.shape.join(", ")}]: expected its sizes as \`shape\``);
  }
  if (free === 1 && count % one !== 0) {
    throw invalid(`input '${name}' has ${count} elements; expected a multiple of ${one}`);
  }
  return input.shape.map((size) => (size < 0 ? count / one : size));
}

function isData(value: unknown): value is Data {
  return Array.isArray(value) || ArrayBuffer.isView(value);
}

/** With no other keys than an `Input` has, and data: so one input that a model calls "data" is
 * sent as `{ data: { data, shape } }`. */
function isInput(value: object): value is Input {
  const keys = Object.keys(value);
  const known = keys.every((key) => key === "data" || key === "shape" || key === "dtype");
  return known && isData((value as Input).data);
}
