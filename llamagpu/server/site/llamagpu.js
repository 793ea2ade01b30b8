// The chat page's module for a server: the interface of the module that runs a model in the browser, over HTTP.

import { LLMError, Server, events, failure } from "./connection.js";

export { LLMError };

const MODEL_PARAMETER = "model"; // of the page's address, where a server has several

/** Names of the options here, and of the fields in a request. */
const FIELDS = {
  maxTokens: "max_tokens",
  temperature: "temperature",
  topK: "top_k",
  topP: "top_p",
  minP: "min_p",
  repetitionPenalty: "repetition_penalty",
  presencePenalty: "presence_penalty",
  frequencyPenalty: "frequency_penalty",
  logitBias: "logit_bias",
  seed: "seed",
  stop: "stop",
  stopTokenIds: "stop_token_ids",
  ignoreEos: "ignore_eos",
};
const PLAIN = { temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1 };
/** @param {string} base URL of the server. @returns {Promise<LLM>} Rejects with LLMError. */
export async function load(base = ".", options = {}) {
  const server = new Server(base, options);
  const listed = await server.json("v1/models", { signal: options.signal });
  const wanted = options.model ?? new URLSearchParams(globalThis.location?.search).get(MODEL_PARAMETER);
  const models = listed.data.filter(({ llamagpu }) => llamagpu.does === "generates text");
  const found = wanted ? models.find(({ id }) => id === wanted) : models[0];
  if (!found) throw new LLMError("not-found", `The server has no model ${wanted ?? "that generates text"}.`);
  return new LLM(server, found);
}

class LLM {
  #server;
  #closed = false;
  #running = new Set();

  constructor(server, { id, max_model_len: context, llamagpu }) {
    this.#server = server;
    const { vocab_size: vocabSize, dtype, parameters, has_chat: hasChat, adapter, bytes } = llamagpu;
    const memory = { weights: bytes.weights, cache: bytes.kv, activations: bytes.activations, total: bytes.total };
    const generation = { temperature: 0, ...here(llamagpu.generation) };
    // "llvmpipe (LLVM 15) (software, Vulkan)"
    const [, name, kind] = /^(.*?)(?: \(([^()]*)\))?$/.exec(adapter);
    const place = { name, vendor: "", architecture: "", software: /\bsoftware\b/.test(kind) };
    this.info = { name: id, title: id, context, vocabSize, parameters, hasChat, profile: "server", generation, memory };
    this.info.adapter = place;
    if (dtype !== "auto") this.info.dtype = dtype; // otherwise that of the files
  }

  /** @param {string | number[]} prompt */
  stream(prompt, options = {}) {
    return this.#start("v1/completions", { prompt }, { ...PLAIN, ...given(options) });
  }

  /** @param {{role: string, content: string}[]} messages */
  chatStream(messages, options = {}) {
    if (!this.info.hasChat) throw new LLMError("no-template", `The model ${this.info.name} has no chat template.`);
    return this.#start("v1/chat/completions", { messages }, { ...this.info.generation, ...given(options) });
  }

  async generate(prompt, options) {
    return this.stream(prompt, options).result;
  }

  async chat(messages, options) {
    return this.chatStream(messages, options).result;
  }

  async tokenize(text, { addSpecialTokens = true } = {}) {
    const body = { model: this.info.name, prompt: text, add_special_tokens: addSpecialTokens };
    return (await this.#server.json("tokenize", { body })).tokens;
  }

  async detokenize(tokens, { skipSpecialTokens = true } = {}) {
    const body = { model: this.info.name, tokens: [...tokens], skip_special_tokens: skipSpecialTokens };
    return (await this.#server.json("detokenize", { body })).prompt;
  }

  close() {
    this.#closed = true;
    for (const stream of this.#running) stream.cancel();
  }

  #start(path, input, { signal, ...options }) {
    if (this.#closed) throw new LLMError("closed", "The model is closed.");
    const body = { model: this.info.name, ...input, ...fields({ maxTokens: 256, ...options }) };
    // The seed is drawn here, because an answer in OpenAI's shape does not tell it.
    if (body.temperature > 0) body.seed ??= crypto.getRandomValues(new Uint32Array(1))[0];
    const stream = new Stream(this.#server, path, body, this.info.context, signal);
    this.#running.add(stream);
    stream.result.catch(() => {}).then(() => this.#running.delete(stream));
    return stream;
  }
}

/** A running generation: an async iterable of pieces of text. `result` is a promise of the rest. */
class Stream {
  #abort = new AbortController();
  #pieces = [];
  #ended = false;
  #wake = () => {};

  constructor(server, path, body, context, signal) {
    const seed = body.temperature > 0 ? body.seed : null;
    const times = { begin: performance.now(), first: 0, last: 0 };
    Object.assign(this, { server, path, body, context, seed, times });
    this.found = { text: "", tokenIds: [], promptTokenIds: [], cachedTokens: 0, finishReason: "cancelled" };
    if (signal?.aborted) this.cancel();
    signal?.addEventListener("abort", () => this.cancel(), { once: true });
    this.result = this.#run();
    this.result.catch(() => {}); // the loop over the pieces throws the same error
  }

  cancel() {
    this.#abort.abort();
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (let next = 0; ; ) {
        while (next < this.#pieces.length) yield this.#pieces[next++];
        if (this.#ended) break;
        await new Promise((resolve) => (this.#wake = resolve));
      }
      await this.result;
    } finally {
      this.cancel();
    }
  }

  async #run() {
    try {
      const body = { ...this.body, stream: true, stream_options: { include_usage: true }, return_token_ids: true };
      const { signal } = this.#abort;
      const response = await this.server.answer(this.path, { body, signal });
      for await (const chunk of events(response.body)) this.#take(chunk);
      if (this.found.finishReason === "cancelled") {
        throw new LLMError("offline", "The server ended the answer too early.", "It was stopped, perhaps.");
      }
    } catch (error) {
      if (!this.#abort.signal.aborted) {
        throw error instanceof LLMError ? error : new LLMError("offline", "The connection broke.", `${error.message}.`);
      }
    } finally {
      this.#ended = true;
      this.#wake();
    }
    return this.#result();
  }

  #take({ choices, usage, error }) {
    if (error) throw failure(500, error);
    if (usage) this.found.cachedTokens = usage.prompt_tokens_details.cached_tokens;
    const [choice] = choices;
    if (!choice) return;
    const piece = choice.text ?? choice.delta?.content ?? "";
    const { found, times } = this;
    if (choice.prompt_token_ids) found.promptTokenIds = choice.prompt_token_ids;
    if (choice.token_ids?.length) {
      found.tokenIds.push(...choice.token_ids);
      times.last = performance.now();
      times.first ||= times.last;
    }
    if (choice.finish_reason) found.finishReason = choice.finish_reason;
    found.text += piece;
    if (!piece) return;
    this.#pieces.push(piece);
    this.#wake();
  }

  #result() {
    const { found, times, seed } = this;
    const [promptTokens, completionTokens] = [found.promptTokenIds.length, found.tokenIds.length];
    const contextFull = found.finishReason === "length" && promptTokens + completionTokens >= this.context;
    const first = times.first || performance.now();
    const timings = { prefillSeconds: (first - times.begin) / 1000, decodeSeconds: (times.last || first) / 1000 };
    timings.decodeSeconds -= first / 1000;
    return { ...found, promptTokens, completionTokens, contextFull, seed, timings };
  }
}

/** The options that were given, without those that were left open. */
function given(options) {
  const unknown = Object.keys(options).find((name) => name !== "signal" && !(name in FIELDS));
  if (unknown) throw new LLMError("bad-argument", `There is no option ${unknown}.`);
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value != null));
}

/** Options as fields of a request. */
function fields(options) {
  return Object.fromEntries(Object.entries(options).map(([name, value]) => [FIELDS[name], value]));
}

/** Fields of a server as options. */
function here(settings) {
  const found = Object.entries(FIELDS).filter(([, field]) => field in settings);
  return Object.fromEntries(found.map(([name, field]) => [name, settings[field]]));
}
