import assert from "node:assert/strict";
import { test } from "node:test";

import { parseTiming } from "./api.js";
import { range, ticks } from "./charts.js";
import { matching } from "./model_list.js";
import { beginnings, cutTensors } from "./steps.js";
import { snippet } from "./snippets.js";
import { mixChannels, readWav } from "./sound.js";

test("Server-Timing is read with its texts", () => {
  assert.deepEqual(parseTiming('queue;dur=1.25, run;dur=3;desc="a \\" b", batch;desc=8, odd'), {
    queue: { duration: 1.25 }, run: { duration: 3, text: 'a \\" b' }, batch: { text: "8" }, odd: {},
  });
  assert.deepEqual(parseTiming(""), {});
});

test("models are found by all words of their names, states, labels and tasks", () => {
  const models = [
    { model: "digits-a", task: "TASK_CLASSIFICATION", versions: [{ version: "2", state: "STATE_READY", labels: ["canary"] }] },
    { model: "digits-b", versions: [{ version: "1", state: "STATE_FAILED" }] },
  ];
  const names = (text) => matching(models, text).map(({ model }) => model);
  assert.deepEqual(names("DIGITS"), ["digits-a", "digits-b"]);
  assert.deepEqual(names("digits canary"), ["digits-a"]);
  assert.deepEqual(names("failed"), ["digits-b"]);
  assert.deepEqual(names("classification"), ["digits-a"]);
  assert.deepEqual(names("nobody"), []);
});

test("a long sequence is asked about at some of its beginnings, the last is all of it", () => {
  assert.deepEqual(beginnings(3), [1, 2, 3]);
  const some = beginnings(1000);
  assert.equal(some.length, 48);
  assert.equal(some.at(-1), 1000);
  assert.deepEqual(some, [...some].sort((a, b) => a - b));
});

test("a beginning has its first steps and their number", () => {
  const inputs = [{ name: "x", timeAxis: 1 }, { name: "n", lengthsOf: "x", timeAxis: -1 }, { name: "other", timeAxis: -1 }];
  const tensors = [
    { name: "x", dtype: "DATA_TYPE_FLOAT", shape: [1, 3, 2], values: [1, 2, 3, 4, 5, 6] },
    { name: "n", dtype: "DATA_TYPE_INT64", shape: [1], values: [3n] },
    { name: "other", dtype: "DATA_TYPE_FLOAT", shape: [1, 2], values: [7, 8] },
  ];
  const cut = cutTensors(tensors, inputs, inputs[0], 2);
  assert.deepEqual(cut.map(({ shape, values }) => [shape, values]), [[[1, 2, 2], [1, 2, 3, 4]], [[1], [2n]], [[1, 2], [7, 8]]]);
});

test("axes have round numbers inside their range", () => {
  assert.deepEqual(ticks(0, 1), [0, 0.25, 0.5, 0.75, 1]);
  assert.deepEqual(ticks(-3, 96), [0, 25, 50, 75]);
  assert.deepEqual(range([NaN]), [0, 1]);
  assert.deepEqual(range([5]), [4, 6]);
  assert.deepEqual(range([10, 100]), [0, 100]);
});

test("a file that is no WAV is named, and so is one that is cut off", () => {
  const bytes = (text) => Uint8Array.from(text, (one) => one.charCodeAt(0)).buffer;
  assert.throws(() => readWav(bytes("")), /no WAV file/);
  assert.throws(() => readWav(bytes("RIFF....WAVE")), /no samples/);
  assert.throws(() => readWav(bytes("RIFF....WAVEdata\x02\x00\x00\x00\x00\x00")), /before their format/);
  assert.deepEqual(mixChannels([Float32Array.of(1, 0), Float32Array.of(0, 0)]), Float32Array.of(0.5, 0));
});

test("code for a server with tokens reads one from the environment, and uses TLS", () => {
  const tensors = [{ name: "x", dtype: "DATA_TYPE_FLOAT", shape: [1, 1], values: [1] }];
  const call = { model: "m", task: "TASK_TENSORS", tensors };
  const server = { grpc: "h:1", http: "https://h:2/", tls: true, tokens: true };
  const [python, curl, grpcurl, node] = ["python", "curl", "grpcurl", "node"].map((one) => snippet(one, call, server));
  assert.match(python, /Client\("h:1", token=os.environ\["NEURONA_TOKEN"\], tls=True\)/);
  assert.match(python, /^import os$/m);
  assert.match(curl, /-H "Authorization: Bearer \$NEURONA_TOKEN"/);
  assert.match(grpcurl, /-H "Authorization: Bearer \$NEURONA_TOKEN"/);
  assert.doesNotMatch(grpcurl, /-plaintext/);
  assert.match(node, /new Client\("h:1", \{ token: process.env.NEURONA_TOKEN, tls: true \}\)/);
});

test("texts in code are data, whatever is in them", () => {
  const hostile = "'; rm -rf / #\" \\ ` $(x) \n\u2028";
  const tensors = [{ name: hostile, dtype: "DATA_TYPE_STRING", shape: [1], values: [hostile] }];
  const call = { model: hostile, task: "TASK_TENSORS", tensors };
  const server = { grpc: "h:1", http: "http://h:2/", tls: false, tokens: false };
  const curl = snippet("curl", call, server);
  assert.ok(curl.includes("'\\''; rm -rf / #"));
  for (const language of ["python", "node"]) {
    for (const line of snippet(language, call, server).split("\n")) assert.doesNotMatch(line, /^\s*;? ?rm /);
  }
});
