// wllama: llama.cpp in WebAssembly, with its WebGPU backend or on the CPU.

import { Wllama } from "/npm/@wllama/wllama/esm/index.js";

/** @param {import("./browser_page.mjs").Job} job */
export async function open(job) {
  const lines = [];
  const keep = (...parts) => lines.push(parts.join(" "));
  const llama = new Wllama(
    { default: "/npm/@wllama/wllama/esm/wasm/wllama.wasm" },
    { logger: { debug: keep, log: keep, warn: keep, error: keep } },
  );
  llama.setCompat(null); // its worker for other browsers would come from the network
  const gpu = job.backend === "webgpu";
  await llama.loadModelFromUrl(new URL(job.model, location.href).href, {
    n_ctx: job.context,
    n_gpu_layers: gpu ? 999 : 0,
    n_parallel: 1,
  });
  if (gpu && !lines.some((line) => /using device WebGPU/i.test(line))) {
    await llama.exit();
    throw new Error("llama.cpp's WebGPU backend takes no adapter without shader-f16, so wllama would run on the CPU");
  }
  const call = (prompt, count, more = {}) =>
    llama.createCompletion({
      prompt: prompt.text, // it takes no ids
      max_tokens: count,
      temperature: 0,
      samplers: ["top_k"],
      top_k: 1,
      cache_prompt: false,
      ignore_eos: true,
      ...more,
    });
  return {
    about: `wllama, llama.cpp ${Wllama.getLibllamaVersion()}${gpu ? "" : `, threads: ${llama.getNumThreads()}`}`,
    generate: call,
    greedy: async (prompt, count) => {
      const answer = await call(prompt, count, { logprobs: 1 }); // costs time, and gives the ids
      const read = answer.usage.prompt_tokens;
      if (read !== prompt.ids.length) throw new Error(`the prompt has ${prompt.ids.length} tokens, wllama read ${read}`);
      return answer.choices[0].logprobs.content.map((token) => token.id);
    },
  };
}
