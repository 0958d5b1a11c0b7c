import { Metadata, status, type ServiceError } from "@grpc/grpc-js";

/** The name of a gRPC status, such as `NOT_FOUND`. */
export type Code = Exclude<keyof typeof status, "OK">;

/** Why a call failed. The message says what was received and what was expected. */
export class NeuronaError extends Error {
  constructor(
    message: string,
    /** Kind of the failure, a gRPC status; client/README.md lists them. */
    readonly code: Code,
    /** Milliseconds after which a retry may succeed. */
    readonly retryAfterMs?: number,
  ) {
    super(message);
    this.name = "NeuronaError";
  }
}

/** Create the error for an invalid argument, which is found before anything is sent. */
export function invalidArgument(message: string): NeuronaError {
  return new NeuronaError(message, "INVALID_ARGUMENT");
}

/** Create the error for a call that failed. */
export function errorFromCall(error: ServiceError): NeuronaError {
  return errorFromStatus(error.code, error.details, retryAfter(error.metadata));
}

/** Create the error for the number of a status; `retryAfterMs` of 0 means none. */
export function errorFromStatus(code: number, message: string, retryAfterMs = 0): NeuronaError {
  const name = code === status.OK || status[code] === undefined ? "UNKNOWN" : (status[code] as Code);
  return new NeuronaError(message, name, retryAfterMs || undefined);
}

function retryAfter(metadata: Metadata | undefined): number | undefined {
  const text = metadata?.get("retry-after-ms")[0];
  return text === undefined ? undefined : Number(text);
}
