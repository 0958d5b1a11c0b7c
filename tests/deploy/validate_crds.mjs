// Validates resources (JSON on standard input) by the schemas of the CRDs' npm packages in the folder
// that is the only argument. Prints a line for each error.
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { execFileSync } from "node:child_process";

const folder = process.argv[2];
const packages = {
  ServiceMonitor: "prometheus-operator/monitoring.coreos.com/v1",
  PrometheusRule: "prometheus-operator/monitoring.coreos.com/v1",
  ScaledObject: "keda/keda.sh/v1alpha1",
};
const typed = [];
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const { kind } = resource;
  const path = `@kubernetes-models/${packages[kind]}/${kind}`;
  const file = join(folder, "node_modules", `${path}.js`);
  const { [kind]: Model } = await import(pathToFileURL(file));
  try {
    new Model(resource).validate();
  } catch (error) {
    console.log(`${kind}: ${error.message}`);
  }
  const number = typed.length;
  typed.push(`import type { I${kind} as Type${number} } from "${path}";
const resource${number}: Type${number} = ${JSON.stringify(resource)};`);
}

// Schemas accept unknown fields, as the API server does, which drops them; types do not.
const source = join(folder, "resources.ts");
writeFileSync(source, typed.join("\n") + "\n");
const compiler = join(folder, "node_modules/typescript/bin/tsc");
const options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext"];
try {
  execFileSync(process.execPath, [compiler, ...options, source], { encoding: "utf8" });
} catch (error) {
  console.log(error.stdout);
}
