// Stands in for the module that runs a model, and plays each of its states. A test sets `globalThis.fake` before the
// page starts, and reads `fake.calls`:
//   info             changes of the model's info
//   loadError        code of the error that loading ends with, once; `holdAt` a stage at which loading waits for ever
//   notice           a notice while loading
//   answers          texts of the answers in order; the last one repeats
//   delay            milliseconds between pieces
//   error            {code, after} ends an answer with an error after so many pieces, once
//   lost             true: the device is lost after the first piece, and the model is loaded again; once
//   contextFull, finishReason   of the result

const fake = Object.assign((globalThis.fake ??= {}), { calls: [] });

const ERRORS = {
  "no-webgpu": ["This browser has no WebGPU.", "It is too old, or WebGPU is switched off.", "Use a current Chrome."],
  "no-adapter": ["There is no GPU to use.", "WebGPU found no adapter.", "Update the GPU's driver, then try again."],
  "too-small": ["The GPU is too small.", "The model needs bindings of 2 GB; it has 128 MB.", "Use a smaller model."],
  offline: ["The download was interrupted.", "The connection was lost after 120 of 270 MB.", "Connect and try again."],
  damaged: ["A file is damaged.", "The hash of weights-3.bin differs.", "Try again to download it anew."],
  "not-found": ["A file is missing.", "The server has no plan.json.", "Ask the host to export the page again."],
  "out-of-memory": ["The GPU is out of memory.", "The model needs 270 MB more.", "Close other tabs and try again."],
  "device-lost": ["The GPU was lost.", "The driver was reset twice.", "Try again, or restart the browser."],
  "context-full": ["The text is too long.", "It has 5,000 tokens, the context 2,048.", "Shorten it."],
  "bad-argument": ["An option has a wrong value.", "topP is 7; it must lie from 0 to 1.", "Change the settings."],
};

export class LLMError extends Error {
  constructor(code) {
    const [what, why, advice] = ERRORS[code];
    super(`${what} ${why} ${advice}`);
    Object.assign(this, { code, what, why, advice });
  }
}

const INFO = {
  name: "tiny-llama",
  title: "Tiny Llama",
  context: 2048,
  vocabSize: 32000,
  dtype: "float16",
  parameters: 134515008,
  hasChat: true,
  profile: "subgroups-f16",
  generation: { temperature: 0.7, topP: 0.9 },
  adapter: { name: "NVIDIA GeForce RTX 4070", vendor: "nvidia", architecture: "ada", software: false },
  memory: { weights: 269e6, cache: 47e6, activations: 12e6, total: 328e6 },
};

const sleep = (time) => new Promise((resolve) => setTimeout(resolve, time));

/** What `error` names happens once, so that a test can try again. */
function take(name) {
  const value = fake[name];
  delete fake[name];
  return value;
}

export async function load(base, { onProgress, onNotice, signal }) {
  const code = take("loadError");
  await play(onProgress, onNotice, signal, code);
  if (code) throw new LLMError(code);
  return new LLM({ ...INFO, ...fake.info }, onProgress, onNotice);
}

async function play(onProgress, onNotice, signal, code) {
  const early = ["no-webgpu", "no-adapter", "too-small"].includes(code);
  if (early) return;
  const totals = { check: 1, download: 270e6, compile: 34, upload: 270e6 };
  for (const [stage, total] of Object.entries(totals)) {
    const detail = stage === "check" ? "NVIDIA GeForce RTX 4070: has all that the model needs" : undefined;
    for (const share of [0, 0.45, 1]) {
      onProgress({ stage, done: Math.round(total * share), total, detail });
      await sleep(0);
      if (stage === "download" && share && code) return;
      if (stage === fake.holdAt && share) await hold(onNotice, signal);
    }
  }
}

function hold(onNotice, signal) {
  if (fake.notice) onNotice(fake.notice);
  return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
}

class LLM {
  constructor(info, onProgress, onNotice) {
    Object.assign(this, { info, onProgress, onNotice });
  }

  close() {
    fake.closed = true;
  }

  chatStream(messages, options) {
    return this.answer({ messages, options });
  }

  stream(prompt, options) {
    return this.answer({ prompt, options });
  }

  answer(call) {
    fake.calls.push(structuredClone(call));
    const answers = fake.answers ?? ["An answer."];
    return new Stream(this, answers[Math.min(fake.calls.length, answers.length) - 1], call.options);
  }
}

class Stream {
  constructor(llm, text, options) {
    Object.assign(this, { llm, text, options, cancelled: false, made: 0 });
    this.result = new Promise((resolve, reject) => Object.assign(this, { resolve, reject }));
  }

  cancel() {
    this.cancelled = true;
  }

  async *[Symbol.asyncIterator]() {
    const error = take("error");
    for (const piece of this.text.match(/\s*\S+\s*$|\s*\S+/g)) {
      if (error && this.made === error.after) return this.fail(new LLMError(error.code));
      if (fake.delay) await sleep(fake.delay);
      if (this.cancelled) break;
      this.made++;
      yield piece;
      if (take("lost")) await this.lose();
    }
    this.resolve(this.outcome());
  }

  fail(error) {
    this.reject(error);
    throw error;
  }

  async lose() {
    this.llm.onNotice("The GPU was lost; loading the model again.");
    this.llm.onProgress({ stage: "upload", done: 100e6, total: 270e6 });
    await sleep(fake.delay ?? 0);
    this.llm.onProgress({ stage: "upload", done: 270e6, total: 270e6 });
  }

  outcome() {
    return {
      text: this.text,
      tokenIds: [],
      promptTokenIds: [],
      promptTokens: 30,
      completionTokens: this.made,
      cachedTokens: 12,
      finishReason: this.cancelled ? "cancelled" : (fake.finishReason ?? "stop"),
      contextFull: fake.contextFull ?? false,
      seed: this.options.seed ?? 7,
      timings: { prefillSeconds: 0.1, decodeSeconds: this.made / 50 },
    };
  }
}
