import { setTimeout as pause } from "node:timers/promises";

import type { CallOptions, ClientUnaryCall, Metadata, ServiceError } from "@grpc/grpc-js";

import { fromResponse, type Prediction } from "./answers.js";
import { channelCredentials, channelOptions, metadata, type ClientSettings } from "./connection.js";
import { failed, NeuronaError } from "./errors.js";
import { HealthCheckResponse_ServingStatus as Serving, HealthClient } from "./generated/health.js";
import {
  ModelsClient,
  PredictionClient,
  type DescribeModelResponse,
  type ModelSummary,
} from "./generated/prediction.js";
import { incomplete, toRequest, type Inputs, type PredictOptions } from "./requests.js";
import { Stream } from "./stream.js";

type Callback<T> = (error: ServiceError | null, response: T) => void;
type Method<Q, R> = (q: Q, m: Metadata, o: Partial<CallOptions>, c: Callback<R>) => ClientUnaryCall;

/** How calls are limited in time and taken back. */
export type CallSettings = Pick<PredictOptions, "timeoutMs" | "signal">;

/** Speaks to a Neurona server. One is enough for a process; `close` ends its connections. */
export class Client {
  readonly #prediction: PredictionClient;
  readonly #models: ModelsClient;
  readonly #health: HealthClient;
  readonly #settings: ClientSettings;
  readonly #stream: Stream;
  readonly #described = new Map<string, Promise<DescribeModelResponse>>();

  /** `target` is HOST:PORT, or any name of gRPC's such as `dns:///neurona:8001`. */
  constructor(target = "127.0.0.1:8001", settings: ClientSettings = {}) {
    const how = channelCredentials(settings);
    this.#settings = settings;
    this.#prediction = new PredictionClient(target, how, channelOptions(settings));
    const channelOverride = this.#prediction.getChannel();
    this.#models = new ModelsClient(target, how, { channelOverride });
    this.#health = new HealthClient(target, how, { channelOverride });
    this.#stream = new Stream(this.#prediction, () => metadata(settings));
  }

  /** One call of its own, whose cancellation and deadline the server knows. */
  async predict(model: string, inputs: Inputs, options: PredictOptions = {}): Promise<Prediction> {
    const request = await this.#request(model, inputs, options);
    const method = this.#prediction.predict.bind(this.#prediction);
    return fromResponse(await this.#unary(method, request, options));
  }

  /** The same over a stream that all calls share: several times as many a second. */
  async predictStreamed(
    model: string,
    inputs: Inputs,
    options: PredictOptions = {},
  ): Promise<Prediction> {
    const request = await this.#request(model, inputs, options);
    const timeoutMs = options.timeoutMs ?? this.#settings.timeoutMs;
    return fromResponse(await this.#stream.predict(request, timeoutMs, options.signal));
  }

  /** Answers in the order of what goes in; at most `concurrency` are under way. */
  async *predictMany(
    model: string,
    many: Iterable<Inputs> | AsyncIterable<Inputs>,
    options: PredictOptions & { concurrency?: number } = {},
  ): AsyncGenerator<Prediction> {
    const under: Promise<Prediction>[] = [];
    for await (const inputs of many) {
      const answer = this.predictStreamed(model, inputs, options);
      answer.catch(() => undefined); // it is thrown where its turn comes
      under.push(answer);
      if (under.length >= (options.concurrency ?? 256)) yield await (under.shift() as Promise<Prediction>);
    }
    while (under.length > 0) yield await (under.shift() as Promise<Prediction>);
  }

  /** What is served, in which versions and states. */
  async models(options: CallSettings = {}): Promise<ModelSummary[]> {
    const method = this.#models.list.bind(this.#models);
    return (await this.#unary(method, {}, options)).models;
  }

  /** A model's inputs, outputs and what it says about itself. */
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

  /** Whether the server ("", the default), a service, "model" or "model/version" serves. */
  async health(service = "", options: CallSettings = {}): Promise<boolean> {
    const method = this.#health.check.bind(this.#health);
    return (await this.#unary(method, { service }, options)).status === Serving.SERVING;
  }

  /** Until the server serves. Throws what it said last when that takes longer. */
  async waitUntilReady(timeoutMs: number, service = ""): Promise<void> {
    const end = Date.now() + timeoutMs;
    for (;;) {
      let reason = new NeuronaError("not serving yet", "UNAVAILABLE");
      try {
        const left = Math.max(1, end - Date.now());
        if (await this.health(service, { timeoutMs: Math.min(1000, left) })) return;
      } catch (error) {
        if (!(error instanceof NeuronaError)) throw error;
        reason = error;
      }
      if (Date.now() >= end) throw reason;
      await pause(50);
    }
  }

  /** Calls under way end as CANCELLED. */
  close(): void {
    this.#stream.close();
    this.#prediction.close();
  }

  async #request(model: string, inputs: Inputs, options: PredictOptions) {
    const described = incomplete(inputs) ? await this.#description(model, options) : undefined;
    return toRequest(model, inputs, options, described);
  }

  /** Asked for once: versions of a model take the same inputs, or the server says what is wrong. */
  #description(model: string, options: PredictOptions): Promise<DescribeModelResponse> {
    const key = JSON.stringify([model, options.version, options.label]);
    let found = this.#described.get(key);
    if (found === undefined) {
      const { version, label, timeoutMs } = options;
      found = this.describe(model, { version, label, timeoutMs });
      this.#described.set(key, found);
      found.catch(() => this.#described.delete(key));
    }
    return found;
  }

  #unary<Q, R>(method: Method<Q, R>, request: Q, options: CallSettings): Promise<R> {
    const { signal } = options;
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(new NeuronaError("the call was aborted", "CANCELLED"));
      const timeoutMs = options.timeoutMs ?? this.#settings.timeoutMs;
      const limits = timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs };
      const call = method(request, metadata(this.#settings), limits, (error, response) => {
        signal?.removeEventListener("abort", abort);
        if (error) reject(failed(error));
        else resolve(response);
      });
      const abort = () => call.cancel();
      signal?.addEventListener("abort", abort);
    });
  }
}
