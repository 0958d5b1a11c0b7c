import type { CallOptions, ClientDuplexStream, Metadata, ServiceError } from "@grpc/grpc-js";
import { status } from "@grpc/grpc-js";

import { failed, NeuronaError, numbered } from "./errors.js";
import type {
  PredictionClient,
  PredictRequest,
  PredictResponse,
  PredictStreamRequest,
  PredictStreamResponse,
  StreamedResponse,
} from "./generated/prediction.js";

type Duplex = ClientDuplexStream<PredictStreamRequest, PredictStreamResponse>;

interface Waiting {
  request: PredictRequest;
  attempts: number;
  resolve(response: PredictResponse): void;
  reject(error: Error): void;
}

const MAX_ATTEMPTS = 5;
/** Milliseconds before the first attempt after a server that cannot be reached; then twice as long. */
const BACKOFF = 50;
/** Requests fail inside the stream: when it fails itself, its connection or its server is gone.
 * A reset connection is INTERNAL here, or CANCELLED or UNKNOWN by the moment. */
const LOST = new Set([status.UNAVAILABLE, status.INTERNAL, status.CANCELLED, status.UNKNOWN]);
const MAX_BACKOFF = 1000;
/** Bytes of tensors in one message: what is above waits for the next. */
const MESSAGE_BYTES = 1 << 20;
/** The server reads no more of a stream that has 4096 requests open. */
const MAX_OPEN = 2048;

/**
 * Many calls over one stream. A message carries what has gathered while the one before it was
 * being written: no timer, and no wait when there is nothing to wait for.
 */
export class Stream {
  #call: Duplex | undefined;
  #next = 1;
  #writable = true;
  #scheduled = false;
  #closed = false;
  readonly #queue: number[] = [];
  readonly #waiting = new Map<number, Waiting>();
  #open = 0;
  #failures = 0;

  constructor(
    private readonly client: PredictionClient,
    private readonly metadata: () => Metadata,
  ) {}

  predict(request: PredictRequest, timeoutMs?: number, signal?: AbortSignal): Promise<PredictResponse> {
    return new Promise((resolve, reject) => {
      if (this.#closed) return reject(new NeuronaError("the client is closed", "CANCELLED"));
      if (signal?.aborted) return reject(new NeuronaError("the call was aborted", "CANCELLED"));
      const id = this.#next++;
      const give = (message: string, code: "CANCELLED" | "DEADLINE_EXCEEDED") => () =>
        this.#take(id)?.reject(new NeuronaError(message, code));
      const aborted = give("the call was aborted", "CANCELLED");
      const late = `no answer after ${timeoutMs} ms`;
      const timer =
        timeoutMs === undefined ? undefined : setTimeout(give(late, "DEADLINE_EXCEEDED"), timeoutMs);
      const end = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", aborted);
      };
      signal?.addEventListener("abort", aborted);
      this.#waiting.set(id, {
        request,
        attempts: 0,
        resolve: (response) => (end(), resolve(response)),
        reject: (error) => (end(), reject(error)),
      });
      this.#queue.push(id);
      this.#schedule();
    });
  }

  /** What waits is rejected. */
  close(): void {
    this.#closed = true;
    this.#call?.cancel();
    for (const id of [...this.#waiting.keys()]) {
      this.#take(id)?.reject(new NeuronaError("the client was closed", "CANCELLED"));
    }
  }

  /** After all that runs now: callers of the same moment share a message. */
  #schedule(): void {
    if (this.#scheduled || !this.#writable) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#write();
    });
  }

  #write(): void {
    while (this.#writable && this.#open < MAX_OPEN) {
      const requests = this.#gather();
      if (requests.length === 0) return;
      this.#call ??= this.#start();
      this.#open += requests.length;
      this.#writable = this.#call.write({ requests });
    }
  }

  #gather(): PredictStreamRequest["requests"] {
    const requests: PredictStreamRequest["requests"] = [];
    let size = 0;
    while (this.#queue.length > 0 && size < MESSAGE_BYTES && this.#open + requests.length < MAX_OPEN) {
      const id = this.#queue[0] as number;
      const waiting = this.#waiting.get(id);
      const own = waiting?.request.inputs.reduce((sum, tensor) => sum + tensor.data.length, 0) ?? 0;
      if (requests.length > 0 && size + own > MESSAGE_BYTES) break;
      this.#queue.shift();
      if (waiting === undefined) continue; // it timed out or was aborted meanwhile
      waiting.attempts += 1;
      size += own;
      requests.push({ id, request: waiting.request });
    }
    return requests;
  }

  #start(): Duplex {
    const options: Partial<CallOptions> = {};
    const call = this.client.predictStream(this.metadata(), options);
    call.on("data", (message: PredictStreamResponse) => {
      this.#failures = 0;
      this.#open -= message.responses.length;
      for (const answer of message.responses) this.#answered(answer);
      if (this.#queue.length > 0) this.#schedule();
    });
    call.on("drain", () => {
      if (call !== this.#call) return;
      this.#writable = true;
      this.#schedule();
    });
    call.on("error", (error: ServiceError) => this.#ended(call, error));
    call.on("end", () => this.#ended(call));
    return call;
  }

  #answered(answer: StreamedResponse): void {
    const waiting = this.#take(answer.id);
    if (waiting === undefined) return;
    if (answer.outcome?.$case === "response") return waiting.resolve(answer.outcome.value);
    const error = answer.outcome?.value;
    waiting.reject(
      numbered(error?.code ?? status.UNKNOWN, error?.message ?? "the answer is empty", error?.retryAfterMs),
    );
  }

  /** A server that stops ends its streams. What it had not answered is sent to the next one. */
  #ended(call: Duplex, error?: ServiceError): void {
    if (call !== this.#call) return;
    this.#call = undefined;
    this.#open = 0;
    const again = error === undefined || LOST.has(error.code);
    const queued = new Set(this.#queue);
    for (const [id, waiting] of [...this.#waiting]) {
      if (queued.has(id)) continue;
      if (again && waiting.attempts < MAX_ATTEMPTS) this.#queue.push(id);
      else {
        const reason = error ? failed(error) : numbered(status.UNAVAILABLE, "the stream ended");
        this.#take(id)?.reject(reason);
      }
    }
    if (error === undefined) call.end();
    // Also when nothing waits: who calls next shall not find the server that just went.
    this.#writable = false;
    const open = () => {
      this.#writable = true;
      this.#schedule();
    };
    const wait = Math.min(MAX_BACKOFF, BACKOFF * 2 ** this.#failures++);
    setTimeout(open, wait * (0.8 + 0.4 * Math.random()));
  }

  #take(id: number): Waiting | undefined {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    return waiting;
  }
}
