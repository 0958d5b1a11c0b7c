import type { PredictResponse } from "./generated/prediction.js";
import { fromTensor, type Output } from "./tensors.js";

export interface Candidate {
  label: string;
  /** The class's number. */
  index: number;
  /** From 0 to 1. */
  probability: number;
}

/** One row's classification: the best class, and the `topK` best, best first. */
export interface ClassifiedRow extends Candidate {
  top: Candidate[];
}

export interface Value {
  name: string;
  unit: string;
  value: number;
}

/** One row's regression: its first value, and all of them. */
export interface RegressedRow extends Value {
  values: Value[];
}

interface Answer {
  model: string;
  /** The version that answered. */
  version: number;
  /** Output tensors by name: for `rawOutputs`, and for a model that has no task. */
  outputs: Record<string, Output>;
}

export interface Classified extends Answer {
  task: "classification";
  /** One for each row of the request, in its order. */
  rows: ClassifiedRow[];
}

export interface Regressed extends Answer {
  task: "regression";
  /** One for each row of the request, in its order. */
  rows: RegressedRow[];
}

export interface Tensors extends Answer {
  task: "tensors";
}

/** `task` says which of the three it is. */
export type Prediction = Classified | Regressed | Tensors;

export function fromResponse(response: PredictResponse): Prediction {
  const outputs = Object.fromEntries(response.outputs.map((one) => [one.name, fromTensor(one)]));
  const answer = { model: response.model, version: response.version, outputs };
  if (response.answer === undefined) return { ...answer, task: "tensors" };
  if (response.answer.$case === "classification") {
    const rows = response.answer.value.rows.map(({ labels, indices, probabilities }) => {
      const top = labels.map((label, place) => ({
        label,
        index: indices[place] ?? -1,
        probability: probabilities[place] ?? Number.NaN,
      }));
      const best = top[0] ?? { label: "", index: -1, probability: Number.NaN };
      return { ...best, top };
    });
    return { ...answer, task: "classification", rows };
  }
  const described = response.answer.value.values;
  const rows = response.answer.value.rows.map((row) => {
    const values = row.values.map((value, place) => ({
      name: described[place]?.name ?? "",
      unit: described[place]?.unit ?? "",
      value,
    }));
    const first = values[0] ?? { name: "", unit: "", value: Number.NaN };
    return { ...first, values };
  });
  return { ...answer, task: "regression", rows };
}
