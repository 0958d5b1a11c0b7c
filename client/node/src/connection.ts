import { ChannelCredentials, credentials, Metadata, type ClientOptions } from "@grpc/grpc-js";

/** Content of PEM files. Without `ca`, the authorities are those that Node trusts. */
export interface Tls {
  ca?: Buffer;
  /** The client's own certificate, for mutual TLS, with `key`. */
  certificate?: Buffer;
  key?: Buffer;
  /** Name in the server's certificate, if it is not the host name. */
  serverName?: string;
}

export interface ClientSettings {
  tls?: boolean | Tls;
  /** Bearer token. Without TLS it is readable on the network. */
  token?: string;
  /** Milliseconds for calls that specify none; without it, no limit. */
  timeoutMs?: number;
  /** Largest message that is sent or received; 64 MiB by default, as in the server. */
  maxMessageBytes?: number;
}

/** Predictions change nothing on the server, so a call that found it unavailable is retried. */
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

/** This machine, as an address, a name or a socket: no proxy of the environment leads there. */
const THIS_MACHINE =
  /^(unix|unix-abstract):|^(dns:\/{0,3}|ipv4:|ipv6:)?(localhost\.?|[^/]*\.localhost\.?|127(\.\d+){3}|\[(::1|::ffff:127(\.\d+){3})\])(:\d+)?$/i;

export function channelOptions(target: string, settings: ClientSettings): ClientOptions {
  const limit = settings.maxMessageBytes ?? 64 << 20;
  const tls = typeof settings.tls === "object" ? settings.tls : {};
  return {
    "grpc.max_receive_message_length": limit,
    "grpc.max_send_message_length": limit,
    "grpc.service_config": SERVICE_CONFIG,
    // A restarted server is used again within seconds, not minutes.
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 2000,
    ...(THIS_MACHINE.test(target) ? { "grpc.enable_http_proxy": 0 } : {}),
    ...(tls.serverName === undefined ? {} : { "grpc.ssl_target_name_override": tls.serverName }),
  };
}

export function channelCredentials({ tls }: ClientSettings): ChannelCredentials {
  if (!tls) return credentials.createInsecure();
  const { ca, certificate, key } = tls === true ? {} as Tls : tls;
  return credentials.createSsl(ca ?? null, key ?? null, certificate ?? null);
}

export function authMetadata({ token }: ClientSettings): Metadata {
  const metadata = new Metadata();
  if (token !== undefined) metadata.set("authorization", `Bearer ${token}`);
  return metadata;
}
