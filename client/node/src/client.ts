import { setTimeout as pause } from "node:timers/promises";

import type { CallOptions, ClientUnaryCall, Metadata, ServiceError } from "@grpc/grpc-js";

import { fromResponse, type Prediction } from "./results.js";
import { channelCredentials, channelOptions, authMetadata, type ClientSettings } from "./connection.js";
import { errorFromCall, NeuronaError } from "./errors.js";
import { HealthCheckResponse_ServingStatus as Serving, HealthClient } from "./generated/health.js";
import {
  ModelsClient,
  PredictionClient,
  type DescribeModelResponse,
  type ModelSummary,
} from "./generated/prediction.js";
import { needsDescription, toRequest, type Inputs, type PredictOptions } from "./requests.js";
import { Stream } from "./stream.js";

type Callback<T> = (error: ServiceError | null, response: T) => void;
type Method<Q, R> = (q: Q, m: Metadata, o: Partial<CallOptions>, c: Callback<R>) => ClientUnaryCall;

/** Time limit and cancellation of a call. */
export type CallSettings = Pick<PredictOptions, "timeoutMs" | "signal">;

/** Client of a Neurona server. One is enough for a process; `close` ends its connections. */
export class Client {
  readonly #prediction: PredictionClient;
  readonly #models: ModelsClient;
  readonly #health: HealthClient;
  readonly #settings: ClientSettings;
  readonly #stream: Stream;
  readonly #descriptions = new Map<string, Promise<DescribeModelResponse>>();

  /** `target` is HOST:PORT, or any name that gRPC resolves, such as `dns:///neurona:8001`. */
  constructor(target = "127.0.0.1:8001", settings: ClientSettings = {}) {
    const credentials = channelCredentials(settings);
    this.#settings = settings;
    this.#prediction = new PredictionClient(target, credentials, channelOptions(target, settings));
    const channelOverride = this.#prediction.getChannel();
    this.#models = new ModelsClient(target, credentials, { channelOverride });
    this.#health = new HealthClient(target, credentials, { channelOverride });
    this.#stream = new Stream(this.#prediction, () => authMetadata(settings));
  }

  /** Predict with a gRPC call of its own, whose deadline and cancellation reach the server. */
  async predict(model: string, inputs: Inputs, options: PredictOptions = {}): Promise<Prediction> {
    const request = await this.#request(model, inputs, options);
    const method = this.#prediction.predict.bind(this.#prediction);
    return fromResponse(await this.#unary(method, request, options));
  }

  /** Predict over a stream that all calls share, which carries several times as many calls. */
  async predictStreamed(
    model: string,
    inputs: Inputs,
    options: PredictOptions = {},
  ): Promise<Prediction> {
    const request = await this.#request(model, inputs, options);
    const timeoutMs = options.timeoutMs ?? this.#settings.timeoutMs;
    return fromResponse(await this.#stream.predict(request, timeoutMs, options.signal));
  }

  /** Predict for many inputs, in order; at most `concurrency` requests are in flight. */
  async *predictMany(
    model: string,
    many: Iterable<Inputs> | AsyncIterable<Inputs>,
    options: PredictOptions & { concurrency?: number } = {},
  ): AsyncGenerator<Prediction> {
    const inFlight: Promise<Prediction>[] = [];
    for await (const inputs of many) {
      const result = this.predictStreamed(model, inputs, options);
      result.catch(() => undefined); // thrown when its turn comes
      inFlight.push(result);
      if (inFlight.length >= (options.concurrency ?? 256)) yield await (inFlight.shift() as Promise<Prediction>);
    }
    while (inFlight.length > 0) yield await (inFlight.shift() as Promise<Prediction>);
  }

  /** List the models with their versions and states. */
  async models(options: CallSettings = {}): Promise<ModelSummary[]> {
    const method = this.#models.list.bind(this.#models);
    return (await this.#unary(method, {}, options)).models;
  }

  /** Describe a model: its inputs and outputs, and what it records about itself. */
  describe(
    model: string,
    options: CallSettings & Pick<PredictOptions, "version" | "label"> = {},
  ): Promise<DescribeModelResponse> {
    const { version, label } = options;
    const which =
      version !== undefined
        ? ({ $case: "version", value: version } as const)
        : label !== undefined
          ? ({ $case: "label", value: label } as const)
          : undefined;
    return this.#unary(this.#models.describe.bind(this.#models), { model, which }, options);
  }

  /** Whether the server ("", the default), a gRPC service, "model" or "model/version" serves. */
  async health(service = "", options: CallSettings = {}): Promise<boolean> {
    const method = this.#health.check.bind(this.#health);
    return (await this.#unary(method, { service }, options)).status === Serving.SERVING;
  }

  /** Wait until the server serves. Throws the last error if it does not within `timeoutMs`. */
  async waitUntilReady(timeoutMs: number, service = ""): Promise<void> {
    const end = Date.now() + timeoutMs;
    for (;;) {
      let lastError = new NeuronaError("not serving yet", "UNAVAILABLE");
      try {
        const remaining = Math.max(1, end - Date.now());
        if (await this.health(service, { timeoutMs: Math.min(1000, remaining) })) return;
      } catch (error) {
        if (!(error instanceof NeuronaError)) throw error;
        lastError = error;
      }
      if (Date.now() >= end) throw lastError;
      await pause(50);
    }
  }

  /** Close all connections; calls in flight end with CANCELLED. */
  close(): void {
    this.#stream.close();
    this.#prediction.close();
  }

  async #request(model: string, inputs: Inputs, options: PredictOptions) {
    const description = needsDescription(inputs) ? await this.#description(model, options) : undefined;
    return toRequest(model, inputs, options, description);
  }

  /** Requested once: versions of a model take the same inputs, or the server rejects the request. */
  #description(model: string, options: PredictOptions): Promise<DescribeModelResponse> {
    const key = JSON.stringify([model, options.version, options.label]);
    let description = this.#descriptions.get(key);
    if (description === undefined) {
      const { version, label, timeoutMs } = options;
      description = this.describe(model, { version, label, timeoutMs });
      this.#descriptions.set(key, description);
      description.catch(() => this.#descriptions.delete(key));
    }
    return description;
  }

  #unary<Q, R>(method: Method<Q, R>, request: Q, options: CallSettings): Promise<R> {
    const { signal } = options;
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(new NeuronaError("call aborted", "CANCELLED"));
      const timeoutMs = options.timeoutMs ?? this.#settings.timeoutMs;
      const limits = timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };
      const call = method(request, authMetadata(this.#settings), limits, (error, response) => {
        signal?.removeEventListener("abort", abort);
        if (error) reject(errorFromCall(error));
        else resolve(response);
      });
      const abort = () => call.cancel();
      signal?.addEventListener("abort", abort);
    });
  }
}
