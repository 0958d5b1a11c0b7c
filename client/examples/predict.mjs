// Call a Neurona server from Node.
//
//     node predict.mjs                       # a server at 127.0.0.1:8001
//     node predict.mjs models.example.com:8001
//
// Needs: npm install neurona

import { Client, NeuronaError } from "neurona";

const client = new Client(process.argv[2] ?? "127.0.0.1:8001", { timeoutMs: 5000 });
await client.waitUntilReady(30_000);

// A batch of two images of 8 x 8 grey levels: one typed array, row by row. The client infers the
// number of images from its length.
const images = new Float32Array(2 * 8 * 8);
const result = await client.predict("lenet5", images, { topK: 2 });
for (const row of result.rows) {
  console.log(row.top.map((one) => `${one.label} ${one.probability.toFixed(2)}`).join(", "));
}

// Many small calls share a stream; results come in the order of the inputs.
let count = 0;
const inputs = Array.from({ length: 100 }, () => new Float32Array(8 * 8));
for await (const one of client.predictMany("lenet5", inputs)) count += one.rows.length;
console.log(`${count} images over a stream`);

// Errors have the code of gRPC and say what is wrong.
try {
  await client.predict("lenet5", new Float32Array(5));
} catch (error) {
  if (!(error instanceof NeuronaError)) throw error;
  console.log(`${error.code}: ${error.message}`);
}
client.close();
