export * from "./results.js";
export { Client, type CallSettings } from "./client.js";
export type { ClientSettings, Tls } from "./connection.js";
export { NeuronaError, type Code } from "./errors.js";
export { DataType, State, Task } from "./generated/prediction.js";
export type { DescribeModelResponse, ModelSummary } from "./generated/prediction.js";
export type { Inputs, PredictOptions } from "./requests.js";
export type { Data, HalfType, Input, Numbers, Output, Text } from "./tensors.js";
