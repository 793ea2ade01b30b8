// One turn of one engine: loads it, measures it, and leaves the outcome in `window.outcome`.
//
// The job is JSON in the URL's fragment, so that every job has the same address in the HTTP cache.

import { decodeSpeed, promptSpeed } from "./browser_measure.mjs";

/**
 * @typedef {import("./browser_measure.mjs").Prompt} Prompt
 *
 * @typedef {object} Job
 * @property {"llamagpu"|"transformers"|"wllama"} engine the module that opens the engine
 * @property {string} model address of the model's file or folder
 * @property {"webgpu"|"wasm"} backend
 * @property {string} dtype the engine's own name of the weights' format
 * @property {number} context tokens that the cache must hold
 * @property {Prompt} short before the decoded tokens
 * @property {Prompt} long prompt of the prefill test
 * @property {number} decode tokens to generate
 */

/** @param {Job} job */
async function turn(job) {
  const engine = await import(`./browser_${job.engine}.mjs`);
  const model = await engine.open(job);
  await model.generate(job.short, 1);
  const load = performance.now() / 1e3; // since the page was opened
  const tokens = await model.greedy(job.short, job.decode); // also warms up
  await model.generate(job.long, 1);
  const decode = await decodeSpeed(model, job.short, job.decode);
  const prompt = await promptSpeed(model, job.long);
  return { about: model.about, tokens, speeds: { decode, prompt, load } };
}

const job = JSON.parse(decodeURIComponent(location.hash.slice(1)));
turn(job).then(
  (found) => (window.outcome = found),
  (error) => (window.outcome = { failure: `${error?.message ?? error}` }),
);
