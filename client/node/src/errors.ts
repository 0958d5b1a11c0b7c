import { Metadata, status, type ServiceError } from "@grpc/grpc-js";

/** The name of a gRPC status, such as `NOT_FOUND`. */
export type Code = Exclude<keyof typeof status, "OK">;

/** Why there is no answer. The message says what came and what was expected. */
export class NeuronaError extends Error {
  constructor(
    message: string,
    /** What kind of failure it is: the README of the server has the list. */
    readonly code: Code,
    /** Trying again may help after this long, in milliseconds. */
    readonly retryAfterMs?: number,
  ) {
    super(message);
    this.name = "NeuronaError";
  }
}

/** Of a wrong argument, which is found before anything is sent. */
export function invalid(message: string): NeuronaError {
  return new NeuronaError(message, "INVALID_ARGUMENT");
}

/** Of a call that failed. */
export function failed(error: ServiceError): NeuronaError {
  return numbered(error.code, error.details, hint(error.metadata));
}

/** Of a status by its number, as errors inside a stream have it; 0 of `retryAfterMs` is none. */
export function numbered(code: number, message: string, retryAfterMs = 0): NeuronaError {
  const name = code === status.OK || status[code] === undefined ? "UNKNOWN" : (status[code] as Code);
  return new NeuronaError(message, name, retryAfterMs || undefined);
}

function hint(metadata: Metadata | undefined): number | undefined {
  const text = metadata?.get("retry-after-ms")[0];
  return text === undefined ? undefined : Number(text);
}
