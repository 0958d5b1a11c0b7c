import type { CallOptions, ClientDuplexStream, Metadata, ServiceError } from "@grpc/grpc-js";
import { status } from "@grpc/grpc-js";

import { errorFromCall, NeuronaError, errorFromStatus } from "./errors.js";
import type {
  PredictionClient,
  PredictRequest,
  PredictResponse,
  PredictStreamRequest,
  PredictStreamResponse,
  StreamedResponse,
} from "./generated/prediction.js";

type Duplex = ClientDuplexStream<PredictStreamRequest, PredictStreamResponse>;

interface PendingRequest {
  request: PredictRequest;
  attempts: number;
  resolve(response: PredictResponse): void;
  reject(error: Error): void;
}

const MAX_ATTEMPTS = 5;
/** Milliseconds before the first attempt to reconnect; doubled for each further one. */
const INITIAL_BACKOFF = 50;
/** A request fails inside the stream; if the stream itself fails, its connection or server is gone.
 * A reset connection is INTERNAL, CANCELLED or UNKNOWN, depending on the moment. */
const CONNECTION_LOST = new Set([status.UNAVAILABLE, status.INTERNAL, status.CANCELLED, status.UNKNOWN]);
const MAX_BACKOFF = 1000;
/** Bytes of tensors in one message; further requests wait for the next message. */
const MAX_MESSAGE_BYTES = 1 << 20;
/** The server reads no more of a stream that has 4096 requests in flight. */
const MAX_IN_FLIGHT = 2048;

/**
 * Many calls over one stream. A message carries the requests that have gathered while the one before
 * it was being written; there is no timer.
 */
export class Stream {
  #call: Duplex | undefined;
  #nextId = 1;
  #writable = true;
  #scheduled = false;
  #closed = false;
  readonly #queue: number[] = [];
  readonly #pending = new Map<number, PendingRequest>();
  #inFlight = 0;
  #failures = 0;

  constructor(
    private readonly client: PredictionClient,
    private readonly metadata: () => Metadata,
  ) {}

  predict(request: PredictRequest, timeoutMs?: number, signal?: AbortSignal): Promise<PredictResponse> {
    return new Promise((resolve, reject) => {
      if (this.#closed) return reject(new NeuronaError("client closed", "CANCELLED"));
      if (signal?.aborted) return reject(new NeuronaError("call aborted", "CANCELLED"));
      const id = this.#nextId++;
      const rejectWith = (message: string, code: "CANCELLED" | "DEADLINE_EXCEEDED") => () =>
        this.#take(id)?.reject(new NeuronaError(message, code));
      const aborted = rejectWith("call aborted", "CANCELLED");
      const late = `deadline exceeded: no response within ${timeoutMs} ms`;
      const timer =
        timeoutMs === undefined ? undefined : setTimeout(rejectWith(late, "DEADLINE_EXCEEDED"), timeoutMs);
      const end = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", aborted);
      };
      signal?.addEventListener("abort", aborted);
      this.#pending.set(id, {
        request,
        attempts: 0,
        resolve: (response) => (end(), resolve(response)),
        reject: (error) => (end(), reject(error)),
      });
      this.#queue.push(id);
      this.#schedule();
    });
  }

  /** Reject all pending requests and end the stream. */
  close(): void {
    this.#closed = true;
    this.#call?.cancel();
    for (const id of [...this.#pending.keys()]) {
      this.#take(id)?.reject(new NeuronaError("client closed", "CANCELLED"));
    }
  }

  /** Write after the code that runs now, so that callers of the same moment share a message. */
  #schedule(): void {
    if (this.#scheduled || !this.#writable) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#write();
    });
  }

  #write(): void {
    while (this.#writable && this.#inFlight < MAX_IN_FLIGHT) {
      const requests = this.#nextRequests();
      if (requests.length === 0) return;
      this.#call ??= this.#start();
      this.#inFlight += requests.length;
      this.#writable = this.#call.write({ requests });
    }
  }

  #nextRequests(): PredictStreamRequest["requests"] {
    const requests: PredictStreamRequest["requests"] = [];
    let size = 0;
    while (this.#queue.length > 0 && size < MAX_MESSAGE_BYTES && this.#inFlight + requests.length < MAX_IN_FLIGHT) {
      const id = this.#queue[0] as number;
      const pending = this.#pending.get(id);
      const bytes = pending?.request.inputs.reduce((sum, tensor) => sum + tensor.data.length, 0) ?? 0;
      if (requests.length > 0 && size + bytes > MAX_MESSAGE_BYTES) break;
      this.#queue.shift();
      if (pending === undefined) continue; // it has timed out or was aborted
      pending.attempts += 1;
      size += bytes;
      requests.push({ id, request: pending.request });
    }
    return requests;
  }

  #start(): Duplex {
    const options: Partial<CallOptions> = {};
    const call = this.client.predictStream(this.metadata(), options);
    call.on("data", (message: PredictStreamResponse) => {
      this.#failures = 0;
      this.#inFlight -= message.responses.length;
      for (const response of message.responses) this.#deliver(response);
      if (this.#queue.length > 0) this.#schedule();
    });
    call.on("drain", () => {
      if (call !== this.#call) return;
      this.#writable = true;
      this.#schedule();
    });
    call.on("error", (error: ServiceError) => this.#onEnd(call, error));
    call.on("end", () => this.#onEnd(call));
    return call;
  }

  #deliver(response: StreamedResponse): void {
    const pending = this.#take(response.id);
    if (pending === undefined) return;
    if (response.outcome?.$case === "response") return pending.resolve(response.outcome.value);
    const error = response.outcome?.value;
    pending.reject(
      errorFromStatus(error?.code ?? status.UNKNOWN, error?.message ?? "empty response", error?.retryAfterMs),
    );
  }

  /** A server that shuts down ends its streams. Requests without a response go to the next server. */
  #onEnd(call: Duplex, error?: ServiceError): void {
    if (call !== this.#call) return;
    this.#call = undefined;
    this.#inFlight = 0;
    const canRetry = error === undefined || CONNECTION_LOST.has(error.code);
    const queued = new Set(this.#queue);
    for (const [id, pending] of [...this.#pending]) {
      if (queued.has(id)) continue;
      if (canRetry && pending.attempts < MAX_ATTEMPTS) this.#queue.push(id);
      else {
        const reason = error ? errorFromCall(error) : errorFromStatus(status.UNAVAILABLE, "stream ended by the server");
        this.#take(id)?.reject(reason);
      }
    }
    if (error === undefined) call.end();
    // Even with nothing pending: the next call must not meet the server that has just ended.
    this.#writable = false;
    const open = () => {
      this.#writable = true;
      this.#schedule();
    };
    const wait = Math.min(MAX_BACKOFF, INITIAL_BACKOFF * 2 ** this.#failures++);
    setTimeout(open, wait * (0.8 + 0.4 * Math.random()));
  }

  #take(id: number): PendingRequest | undefined {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    return pending;
  }
}
