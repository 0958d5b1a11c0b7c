import { invalidArgument } from "./errors.js";
import { Priority, type DescribeModelResponse, type PredictRequest } from "./generated/prediction.js";
import { toTensor, type Data, type Input } from "./tensors.js";

/** The only input of a model, or inputs by name. */
export type Inputs = Data | Input | Record<string, Data | Input>;

export interface PredictOptions {
  /** Number of the version; not together with `label`. */
  version?: number;
  /** Name that points to a version; "latest" always exists. */
  label?: string;
  /** How many classes a classification returns for each row. */
  topK?: number;
  /** Return the model's output tensors as well. */
  rawOutputs?: boolean;
  priority?: "normal" | "high" | "low";
  /** Milliseconds from now to the response; a request that is late does not run. */
  timeoutMs?: number;
  /** Cancels the call when it is aborted. */
  signal?: AbortSignal;
}

const PRIORITIES = {
  normal: Priority.PRIORITY_NORMAL,
  high: Priority.PRIORITY_HIGH,
  low: Priority.PRIORITY_LOW,
};

/** Whether the model's description is needed to infer a name or a shape. */
export function needsDescription(inputs: Inputs): boolean {
  if (isData(inputs) || isInput(inputs)) return true;
  return Object.values(inputs).some((one) => isData(one) || one.shape === undefined);
}

/** Create a request. `description` may be absent if every input has a name and a shape. */
export function toRequest(
  model: string,
  inputs: Inputs,
  options: PredictOptions,
  description?: DescribeModelResponse,
): PredictRequest {
  if (options.version !== undefined && options.label !== undefined) {
    throw invalidArgument("version and label are both set (expected one of them)");
  }
  const byName = inputsByName(model, inputs, description);
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
      return toTensor(name, input, input.shape ?? inferShape(model, name, input.data.length, description));
    }),
    topK: options.topK ?? 1,
    rawOutputs: options.rawOutputs ?? false,
    priority: PRIORITIES[options.priority ?? "normal"],
  };
}

function inputsByName(
  model: string,
  inputs: Inputs,
  description?: DescribeModelResponse,
): Record<string, Data | Input> {
  if (!isData(inputs) && !isInput(inputs)) return inputs;
  const required = description?.inputs.filter((one) => !one.optional) ?? [];
  const [only] = required;
  if (only === undefined || required.length > 1) {
    const names = required.map((one) => one.name).join(", ");
    throw invalidArgument(`model '${model}' has ${required.length} inputs: ${names} (expected inputs by name)`);
  }
  return { [only.name]: inputs };
}

/** Infer the shape of a number of elements, if the model leaves at most one size free. */
function inferShape(
  model: string,
  name: string,
  count: number,
  description?: DescribeModelResponse,
): number[] {
  const input = description?.inputs.find((one) => one.name === name);
  if (input === undefined) throw invalidArgument(`unknown input '${name}' of model '${model}'`);
  const free = input.shape.filter((size) => size < 0).length;
  const fixedSize = input.shape.reduce((product, size) => (size < 0 ? product : product * size), 1);
  if (free > 1) {
    throw invalidArgument(`input '${name}' has several free sizes in [${input.shape.join(", ")}] (expected \`shape\`)`);
  }
  if (free === 1 && count % fixedSize !== 0) {
    throw invalidArgument(`input '${name}' has ${count} elements (expected a multiple of ${fixedSize})`);
  }
  return input.shape.map((size) => (size < 0 ? count / fixedSize : size));
}

function isData(value: unknown): value is Data {
  return Array.isArray(value) || ArrayBuffer.isView(value);
}

/** Whether a value has the keys of an `Input` and no others. An input that a model calls "data" is
 * therefore passed as `{ data: { data, shape } }`. */
function isInput(value: object): value is Input {
  const keys = Object.keys(value);
  const onlyInputKeys = keys.every((key) => key === "data" || key === "shape" || key === "dtype");
  return onlyInputKeys && isData((value as Input).data);
}
