/** neurona-serve as a process of its own, over the repository that the environment names. */

import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createServer, type AddressInfo } from "node:net";

import { Client } from "../src/index.js";

function named(variable: string): string {
  const value = process.env[variable];
  if (!value) throw new Error(`${variable} is not set: make test-node sets what these tests need`);
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

export class Served {
  #process: ChildProcess | undefined;

  private constructor(
    readonly address: string,
    private readonly flags: string[],
  ) {}

  /** With all models. */
  static start(...flags: string[]): Promise<Served> {
    return Served.#start(named("NODE_TEST_REPOSITORY"), flags);
  }

  /** With the classifier alone, which is up in a second. */
  static small(): Promise<Served> {
    return Served.#start(named("NODE_TEST_SMALL_REPOSITORY"), []);
  }

  static async #start(repository: string, flags: string[]): Promise<Served> {
    const address = `127.0.0.1:${await freePort()}`;
    const metrics = `127.0.0.1:${await freePort()}`;
    const all = ["--repository", repository, "--address", address];
    const served = new Served(address, [...all, "--metrics-address", metrics, ...flags]);
    await served.start();
    return served;
  }

  /** Again, after its end, at the same address. */
  async start(): Promise<void> {
    this.#process = spawn(named("NODE_TEST_SERVE"), this.flags, { stdio: "ignore" });
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
