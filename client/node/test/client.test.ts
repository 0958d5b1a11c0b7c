import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { Client, NeuronaError, State, type Input } from "../src/index.js";
import { ServerProcess } from "./server.js";

let server: ServerProcess;
let client: Client;

before(async () => {
  server = await ServerProcess.start("--versions", "all");
  client = new Client(server.address, { timeoutMs: 30_000 });
});

after(async () => {
  client.close();
  await server.stop();
});

const zeros = new Float32Array(4);

function fails(code: string, message: RegExp) {
  return (error: unknown) => {
    assert.ok(error instanceof NeuronaError, String(error));
    assert.equal(error.code, code);
    assert.match(error.message, message);
    return true;
  };
}

test("the shape of a typed array is inferred if the model leaves one size free", async () => {
  const result = await client.predict("classifier", new Float32Array(8), { topK: 3, version: 1 });
  assert.equal(result.task, "classification");
  assert.equal(result.version, 1);
  assert.equal(result.rows.length, 2);
  const [row] = result.rows;
  assert.ok(row);
  assert.deepEqual(new Set(row.top.map((one) => one.label)), new Set(["ant", "bee", "cat"]));
  assert.equal(row.probability, row.top[0]?.probability);
  const sum = row.top.reduce((total, one) => total + one.probability, 0);
  assert.ok(Math.abs(sum - 1) < 1e-5, `probabilities add up to ${sum}`);
});

test("a server on this machine is not reached through the proxy of the environment", async () => {
  process.env.http_proxy = "http://127.0.0.1:1";
  try {
    const near = new Client(server.address, { timeoutMs: 30_000 });
    assert.equal((await near.predict("classifier", zeros)).task, "classification");
    near.close();
  } finally {
    delete process.env.http_proxy;
  }
});

test("a regression has values with units", async () => {
  const result = await client.predict("regressor", { data: new Float32Array([1, 2, 3, 4]), shape: [1, 4] });
  assert.equal(result.task, "regression");
  assert.equal(result.rows.length, 1);
  const [row] = result.rows;
  assert.ok(row && Number.isFinite(row.value));
  assert.equal(row.values.length > 0 && row.values[0]?.value, row.value);
});

for (const [kind, dtype, data] of [
  ["FP32", "float", new Float32Array([1.5, -2, 3])],
  ["FP64", "double", new Float64Array([0.1, -1e300])],
  ["INT8", "int8", new Int8Array([-128, 127])],
  ["INT16", "int16", new Int16Array([-32768, 1])],
  ["INT32", "int32", new Int32Array([-(2 ** 31), 1])],
  ["INT64", "int64", new BigInt64Array([-(2n ** 63n), 9007199254740993n])],
  ["UINT8", "uint8", new Uint8Array([0, 255])],
  ["UINT16", "uint16", new Uint16Array([0, 65535])],
  ["UINT32", "uint32", new Uint32Array([0, 2 ** 32 - 1])],
  ["UINT64", "uint64", new BigUint64Array([2n ** 64n - 1n])],
  ["FP16", "float16", new Uint16Array([0x3c00, 0xc000])],
  ["BF16", "bfloat16", new Uint16Array([0x3f80, 0xc000])],
  ["BOOL", "bool", [true, false, true]],
  ["BYTES", "string", ["", "naïve", "日本語", Buffer.from([0xff, 0x00, 0x80])]],
] as const) {
  test(`${dtype} survives a round trip`, async () => {
    const shape = [1, data.length];
    const half = dtype === "float16" || dtype === "bfloat16" ? { dtype } : {};
    const input = { x: { data: Array.isArray(data) ? [...data] : data, shape, ...half } as Input };
    for (const method of ["predict", "predictStreamed"] as const) {
      const result = await client[method](`echo_${kind}`, input);
      assert.equal(result.task, "tensors");
      assert.deepEqual(result.outputs, { echo: { dtype, shape, data } });
    }
  });
}

test("a view into a larger buffer sends only its part", async () => {
  const whole = new Float32Array([9, 9, 1, 2, 9]);
  const input = { x: { data: whole.subarray(2, 4), shape: [1, 2] } };
  const result = await client.predict("echo_FP32", input);
  assert.deepEqual(Object.values(result.outputs)[0]?.data, new Float32Array([1, 2]));
});

test("a thousand simultaneous calls share a stream and get their own results", async () => {
  const numbers = Array.from({ length: 1000 }, (_, index) => index);
  const results = await Promise.all(
    numbers.map((n) =>
      client.predictStreamed("echo_FP32", { x: { data: new Float32Array([n]), shape: [1, 1] } }),
    ),
  );
  const values = results.map((result) => (Object.values(result.outputs)[0]?.data as Float32Array)[0]);
  assert.deepEqual(values, numbers);
});

test("more calls than the server reads from a stream at once give results in order", async () => {
  function* inputs() {
    for (let n = 0; n < 6000; n++) yield { x: { data: new Float32Array([n]), shape: [1, 1] } };
  }
  let next = 0;
  for await (const result of client.predictMany("echo_FP32", inputs(), { concurrency: 5000 })) {
    assert.equal((Object.values(result.outputs)[0]?.data as Float32Array)[0], next++);
  }
  assert.equal(next, 6000);
});

test("an invalid request does not affect others in the stream", async () => {
  const [good, bad] = await Promise.allSettled([
    client.predictStreamed("classifier", zeros),
    client.predictStreamed("classifier", { x: { data: zeros, shape: [2, 2] } }),
  ]);
  assert.equal(good.status, "fulfilled");
  assert.equal(bad.status, "rejected");
  assert.ok(fails("INVALID_ARGUMENT", /shape/)(bad.reason));
});

test("errors have a code and say what is wrong", async () => {
  const shaped = (data: Float32Array, shape: number[]) => ({ x: { data, shape } });
  await assert.rejects(client.predict("nothing", shaped(zeros, [1, 4])), fails("NOT_FOUND", /nothing/));
  await assert.rejects(client.predict("nothing", zeros), fails("NOT_FOUND", /nothing/));
  await assert.rejects(client.predict("classifier", zeros, { version: 7 }), fails("NOT_FOUND", /7/));
  await assert.rejects(
    client.predict("classifier", new Float32Array(5)),
    fails("INVALID_ARGUMENT", /5 elements \(expected a multiple of 4/),
  );
  await assert.rejects(
    client.predict("classifier", shaped(zeros, [2, 4])),
    fails("INVALID_ARGUMENT", /4 elements \(expected 8 for shape \[2, 4\]/),
  );
  await assert.rejects(
    client.predict("classifier", zeros, { version: 1, label: "latest" }),
    fails("INVALID_ARGUMENT", /both set/),
  );
  const unreachable = new Client("127.0.0.1:1");
  await assert.rejects(unreachable.models(), fails("UNAVAILABLE", /./));
  unreachable.close();
});

test("a deadline and an abort end a call, unary and streamed", async () => {
  const slow = { x: { data: new Float32Array([1]), shape: [1] } };
  for (const method of ["predict", "predictStreamed"] as const) {
    await assert.rejects(client[method]("slow", slow, { timeoutMs: 1 }), fails("DEADLINE_EXCEEDED", /./));
    const abort = new AbortController();
    const call = client[method]("slow", slow, { signal: abort.signal });
    setImmediate(() => abort.abort());
    await assert.rejects(call, fails("CANCELLED", /./));
    await assert.rejects(client[method]("slow", slow, { signal: abort.signal }), fails("CANCELLED", /aborted/));
  }
});

test("models are listed, described and healthy", async () => {
  const models = await client.models();
  const classifier = models.find((model) => model.model === "classifier");
  assert.deepEqual(classifier?.versions.map((one) => one.version), [1, 2]);
  assert.ok(classifier?.versions.every((one) => one.state === State.STATE_READY));
  const description = await client.describe("classifier", { version: 2 });
  assert.equal(description.version?.version, 2);
  assert.deepEqual(description.metadata?.labels, ["ant", "bee", "cat"]);
  assert.equal(await client.health(), true);
  assert.equal(await client.health("classifier/2"), true);
  await assert.rejects(client.health("nothing"), fails("NOT_FOUND", /nothing/));
});

test("the timeout of a client applies to its calls", async () => {
  const impatient = new Client(server.address, { timeoutMs: 1 });
  const slow = { x: { data: new Float32Array([1]), shape: [1] } };
  await assert.rejects(impatient.predict("slow", slow), fails("DEADLINE_EXCEEDED", /./));
  await assert.rejects(impatient.predictStreamed("slow", slow), fails("DEADLINE_EXCEEDED", /./));
  impatient.close();
});

test("no streamed call fails while servers are killed, one after the other", async (t) => {
  const servers = await Promise.all([ServerProcess.small(), ServerProcess.small(), ServerProcess.small()]);
  const target = `ipv4:${servers.map((server) => server.address).join(",")}`;
  const caller = new Client(target, { timeoutMs: 30_000 });
  let running = true;
  t.after(async () => {
    running = false;
    caller.close();
    for (const server of servers) await server.stop("SIGKILL");
  });
  let sent = 0;
  const predict = async () => {
    const n = ++sent; // not 0, for which all classes are equally probable
    const x = { data: new Float32Array([n, 0, 0, 0]), shape: [1, 4] };
    const options = { rawOutputs: true, topK: 3 };
    const result = await caller.predictStreamed("classifier", { x }, options);
    assert.equal(result.task, "classification");
    // The weights of the first number increase from class to class, so that the last class wins.
    assert.equal(result.rows[0]?.label, "cat");
  };
  const callers = Array.from({ length: 50 }, async () => {
    while (running) await predict();
  });
  for (const server of servers.slice(1)) {
    const before = sent;
    await server.stop("SIGKILL");
    while (sent < before + 500) await predict();
    await server.start();
  }
  running = false;
  await Promise.all(callers);
  for (const server of servers) await server.stop();
  await assert.rejects(predict(), fails("UNAVAILABLE", /./)); // no server is running
});

test("a closed client rejects calls", async () => {
  const closed = new Client(server.address);
  const slow = { x: { data: new Float32Array([1]), shape: [1] } };
  const pending = closed.predictStreamed("slow", slow);
  closed.close();
  await assert.rejects(pending, fails("CANCELLED", /closed/));
  await assert.rejects(closed.predictStreamed("slow", slow), fails("CANCELLED", /closed/));
});
