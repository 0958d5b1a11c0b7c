/** neurona-serve as a process, with the repository that the environment names. */

import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createServer, type AddressInfo } from "node:net";

import { Client } from "../src/index.js";

function requireVariable(variable: string): string {
  const value = process.env[variable];
  if (!value) throw new Error(`${variable} is not set (expected: run by make test-node)`);
  return value;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

export class ServerProcess {
  #process: ChildProcess | undefined;

  private constructor(
    readonly address: string,
    private readonly flags: string[],
  ) {}

  /** Start a server with all models. */
  static start(...flags: string[]): Promise<ServerProcess> {
    return ServerProcess.#start(requireVariable("NODE_TEST_REPOSITORY"), flags);
  }

  /** Start a server with the classifier alone, which is ready within a second. */
  static small(): Promise<ServerProcess> {
    return ServerProcess.#start(requireVariable("NODE_TEST_SMALL_REPOSITORY"), []);
  }

  static async #start(repository: string, flags: string[]): Promise<ServerProcess> {
    const address = `127.0.0.1:${await freePort()}`;
    const metrics = `127.0.0.1:${await freePort()}`;
    const all = ["--repository", repository, "--address", address];
    const server = new ServerProcess(address, [...all, "--metrics-address", metrics, ...flags]);
    await server.start();
    return server;
  }

  /** Start the process, also again after its end, at the same address. */
  async start(): Promise<void> {
    this.#process = spawn(requireVariable("NODE_TEST_SERVE"), this.flags, { stdio: "ignore" });
    const client = new Client(this.address);
    try {
      await client.waitUntilReady(60_000);
    } finally {
      client.close();
    }
  }

  async stop(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    const process = this.#process;
    this.#process = undefined;
    if (!process) return;
    const ended = once(process, "exit");
    process.kill(signal);
    await ended;
  }
}
