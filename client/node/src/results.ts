import type { PredictResponse } from "./generated/prediction.js";
import { fromTensor, type Output } from "./tensors.js";

export interface Candidate {
  label: string;
  /** Position of the class in the model's output. */
  index: number;
  /** 0 to 1. */
  probability: number;
}

/** Classification of one row: the most probable class, and the `topK` most probable in order. */
export interface ClassificationResultRow extends Candidate {
  top: Candidate[];
}

export interface Value {
  name: string;
  unit: string;
  value: number;
}

/** Regression of one row: its first value, and all values. */
export interface RegressionResultRow extends Value {
  values: Value[];
}

interface Result {
  model: string;
  /** The version that answered. */
  version: number;
  /** Output tensors by name: with `rawOutputs`, or of a model without a task. */
  outputs: Record<string, Output>;
}

export interface ClassificationResult extends Result {
  task: "classification";
  /** One for each row of the request, in order. */
  rows: ClassificationResultRow[];
}

export interface RegressionResult extends Result {
  task: "regression";
  /** One for each row of the request, in order. */
  rows: RegressionResultRow[];
}

export interface TensorsResult extends Result {
  task: "tensors";
}

/** The result of any model; `task` says which of the three it is. */
export type Prediction = ClassificationResult | RegressionResult | TensorsResult;

export function fromResponse(response: PredictResponse): Prediction {
  const outputs = Object.fromEntries(response.outputs.map((one) => [one.name, fromTensor(one)]));
  const result = { model: response.model, version: response.version, outputs };
  if (response.answer === undefined) return { ...result, task: "tensors" };
  if (response.answer.$case === "classification") {
    const rows = response.answer.value.rows.map(({ labels, indices, probabilities }) => {
      const top = labels.map((label, position) => ({
        label,
        index: indices[position] ?? -1,
        probability: probabilities[position] ?? Number.NaN,
      }));
      const best = top[0] ?? { label: "", index: -1, probability: Number.NaN };
      return { ...best, top };
    });
    return { ...result, task: "classification", rows };
  }
  const specs = response.answer.value.values;
  const rows = response.answer.value.rows.map((row) => {
    const values = row.values.map((value, position) => ({
      name: specs[position]?.name ?? "",
      unit: specs[position]?.unit ?? "",
      value,
    }));
    const first = values[0] ?? { name: "", unit: "", value: Number.NaN };
    return { ...first, values };
  });
  return { ...result, task: "regression", rows };
}
