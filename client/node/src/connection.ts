import { ChannelCredentials, credentials, Metadata, type ClientOptions } from "@grpc/grpc-js";

/** PEM files' content. Without `ca` the authorities are those that Node trusts. */
export interface Tls {
  ca?: Buffer;
  /** For mutual TLS, with `key`. */
  certificate?: Buffer;
  key?: Buffer;
  /** The name in the server's certificate, if it is not the host's. */
  serverName?: string;
}

export interface ClientSettings {
  tls?: boolean | Tls;
  /** A bearer token, where the server wants one. Without TLS anybody on the way can read it. */
  token?: string;
  /** Of each call, unless the call has its own: milliseconds. Without one it waits for ever. */
  timeoutMs?: number;
  /** Of a message, sent or received; as large as the server's by default: 64 MiB. */
  maxMessageBytes?: number;
}

/** Predictions may be asked for twice, so what the server refused for the moment is tried again. */
const SERVICE_CONFIG = JSON.stringify({
  loadBalancingConfig: [{ round_robin: {} }],
  methodConfig: [
    {
      name: [{ service: "neurona.v1.Prediction" }, { service: "neurona.v1.Models", method: "List" }],
      retryPolicy: {
        maxAttempts: 4,
        initialBackoff: "0.05s",
        maxBackoff: "1s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
});

export function channelOptions(settings: ClientSettings): ClientOptions {
  const most = settings.maxMessageBytes ?? 64 << 20;
  const tls = typeof settings.tls === "object" ? settings.tls : {};
  return {
    "grpc.max_receive_message_length": most,
    "grpc.max_send_message_length": most,
    "grpc.service_config": SERVICE_CONFIG,
    // A server that is back is found within seconds, not minutes.
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 2000,
    ...(tls.serverName === undefined ? {} : { "grpc.ssl_target_name_override": tls.serverName }),
  };
}

export function channelCredentials({ tls }: ClientSettings): ChannelCredentials {
  if (!tls) return credentials.createInsecure();
  const { ca, certificate, key } = tls === true ? {} as Tls : tls;
  return credentials.createSsl(ca ?? null, key ?? null, certificate ?? null);
}

export function metadata({ token }: ClientSettings): Metadata {
  const sent = new Metadata();
  if (token !== undefined) sent.set("authorization", `Bearer ${token}`);
  return sent;
}
