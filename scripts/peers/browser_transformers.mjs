// transformers.js: ONNX Runtime for the web, on WebGPU or in WebAssembly.

import {
  AutoModelForCausalLM,
  Tensor,
  env,
} from "/npm/@huggingface/transformers/dist/transformers.web.js";

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = "/models/";
// The build that it takes by default, here instead of in a network.
env.backends.onnx.wasm.wasmPaths = {
  mjs: "/npm/onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs",
  wasm: "/npm/onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
};

/** @param {import("./browser_page.mjs").Job} job */
export async function open(job) {
  const model = await AutoModelForCausalLM.from_pretrained(job.model, { device: job.backend, dtype: job.dtype });
  // Without an end token, no call ends early.
  model.config.eos_token_id = model.generation_config.eos_token_id = null;
  const greedy = async ({ ids }, count) => {
    const found = await model.generate({
      inputs: tensor(ids),
      attention_mask: tensor(ids.map(() => 1)),
      max_new_tokens: count,
      do_sample: false,
    });
    return [...found.data].slice(ids.length).map(Number);
  };
  const threads = job.backend === "wasm" ? `, threads: ${env.backends.onnx.wasm.numThreads}` : "";
  return { about: `transformers.js ${env.version}${threads}`, generate: greedy, greedy };
}

/** Integers as a batch of one row. */
function tensor(values) {
  return new Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
}
