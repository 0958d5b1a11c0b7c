// Makes the calls of Triton's JavaScript example: node examples_driver.js ADDRESS PROTOS MODULES.
// Prints a JSON object of what came back.

const path = require("path");

const [address, protos, modules] = process.argv.slice(2);
const grpc = require(path.join(modules, "@grpc", "grpc-js"));
const loader = require(path.join(modules, "@grpc", "proto-loader"));

const definition = loader.loadSync("neurona_protos/open_inference.proto", {
  includeDirs: [protos],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { inference } = grpc.loadPackageDefinition(definition);
const client = new inference.GRPCInferenceService(address, grpc.credentials.createInsecure());

function call(name, request) {
  return new Promise((resolve, reject) => {
    client[name](request, (error, response) => (error ? reject(error) : resolve(response)));
  });
}

function integers(buffer) {
  return Array.from({ length: buffer.length / 4 }, (_, index) => buffer.readInt32LE(4 * index));
}

async function main() {
  const numbers = Array.from({ length: 16 }, (_, index) => index);
  const inputs = ["INPUT0", "INPUT1"].map((name) => ({
    name,
    datatype: "INT32",
    shape: [1, 16],
    contents: { int_contents: numbers },
  }));
  const { live } = await call("serverLive", {});
  const { ready } = await call("serverReady", {});
  const metadata = await call("modelMetadata", { name: "simple", version: "" });
  const response = await call("modelInfer", {
    model_name: "simple",
    model_version: "",
    inputs,
    outputs: [{ name: "OUTPUT0" }, { name: "OUTPUT1" }],
  });
  const outputs = response.raw_output_contents.map(integers);
  console.log(JSON.stringify({ live, ready, metadata, outputs }));
}

main().then(
  () => client.close(),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
