// This project's export in Dawn for Node: a runner, as in runner.py, of an exported site that is loaded over HTTP.
//
//   node browser_dawn.mjs JOB     JSON: npm (folder), site (folder), address (its URL), short, long, decode

import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

import { wrap } from "./browser_llamagpu.mjs";
import { decodeSpeed, promptSpeed } from "./browser_measure.mjs";

const job = JSON.parse(process.argv[2]);
const resolve = createRequire(pathToFileURL(`${job.npm}/`)).resolve;
const { create, globals } = await import(pathToFileURL(resolve("webgpu")));
Object.assign(globalThis, globals);
const gpu = create([]);
const { info, features } = await gpu.requestAdapter();

const { load } = await import(pathToFileURL(`${job.site}/llamagpu.js`));
const model = wrap(await load(job.address, { gpu, cache: false }));
const tests = {
  decode: () => decodeSpeed(model, job.short, job.decode),
  prompt: () => promptSpeed(model, job.long),
};

const tokens = await model.greedy(job.short, job.decode);
await tests.prompt(); // warms up
const f16 = features.has("shader-f16") ? "with" : "without";
const version = `${model.about}, Dawn for Node (webgpu ${job.version})`;
console.log(JSON.stringify({ device: `${info.description || info.device}, ${f16} shader-f16`, version, tokens }));
for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify({ tokens_per_s: await tests[line.trim()]() }));
}
process.exit(0); // Dawn's threads would keep the process
