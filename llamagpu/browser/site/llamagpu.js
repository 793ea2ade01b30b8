// llamagpu.js: runs an exported language model in a browser, by WebGPU.
//
//   import {load} from "./llamagpu.js";
//   const llm = await load(".");
//   for await (const piece of llm.stream("Once upon a time", {maxTokens: 64})) console.log(piece);
//
// A model is a list of recorded plans: dispatches of compiled shaders over fixed buffers. A token is one submission of a
// plan and one read of 16 bytes; sampling runs on the GPU, which hands each token to the next step itself.

import {LLMError} from "./runtime/errors.js";
import {Files} from "./runtime/files.js";
import {DEFAULTS, checked, checkId} from "./runtime/options.js";
import {Text} from "./runtime/text.js";

export {LLMError};

const MAP_READ = 1, COPY_SRC = 4, COPY_DST = 8, UNIFORM = 64, STORAGE = 128; // GPUBufferUsage
const COMPUTE = 4; // GPUShaderStage
const READ = 1; // GPUMapMode
const PARAMS_ALIGN = 256; // bytes from one uniform binding to the next
const IN_FLIGHT = 2; // steps that are submitted before the oldest is read
const PACE_SECONDS = 0.1; // goal for one submission of a prompt: browsers stop commands that run for seconds
const RECOVERY_SECONDS = 60; // a second loss within this time is final
const FORMAT = 1;

const megabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en", {maximumFractionDigits: 1})} MB`;

/**
 * Loads the model of a site.
 * @param {string} base - address of the site's folder
 * @param {object} options - `onProgress({stage, done, total})` with the stages check, download, compile and upload;
 *   `onNotice(sentence)`; `signal` stops loading; `profile` names one of the plan's profiles; `cache: false` keeps nothing
 *   in the browser's storage; `gpu` and `fetch` replace the browser's own.
 * @returns {Promise<LLM>}
 */
export async function load(base = ".", options = {}) {
  const at = new URL(base.endsWith("/") ? base : `${base}/`, globalThis.document?.baseURI);
  const files = new Files(at, options);
  const report = (stage, done, total) => options.onProgress?.({stage, done, total});
  report("check", 0, 1);
  const plan = await files.freshJson("plan.json");
  if (plan.format !== FORMAT) {
    const advice = "Export the model and the page together.";
    throw new LLMError("bad-argument", `The plan has format ${plan.format}; this page reads ${FORMAT}.`, "", advice);
  }
  const place = {files, plan, report, gpu: "gpu" in options ? options.gpu : globalThis.navigator?.gpu, ...options};
  const chosen = await choose(place.gpu, plan, options.profile);
  const {name} = chosen.facts;
  options.onProgress?.({stage: "check", done: 1, total: 1, detail: `${name}: the model needs ${megabytes(plan.memory.total)}.`});
  await files.expect([...plan.shards, ...Object.values(plan.files)], options.onNotice);
  const [tokenizer, settings] = await Promise.all(["tokenizer.json", "text.json"].map(
    async (name) => JSON.parse(await files.text(name, plan.files[name]))));
  const text = new Text(tokenizer, settings);
  const machine = await Machine.open(chosen, place);
  await files.dropOthers();
  return new LLM(place, machine, text);
}

/** An adapter and the first profile of the plan that it can run. */
async function choose(gpu, plan, wanted) {
  if (!gpu) {
    const secure = globalThis.isSecureContext !== false;
    const why = secure ? "The browser does not offer it, or it is switched off."
      : "Browsers offer it only to pages from https or localhost.";
    const advice = secure ? "Use a current Chrome, Edge, Safari or Firefox." : "Open this page by https.";
    throw new LLMError("no-webgpu", "This page needs WebGPU.", why, advice);
  }
  const adapter = await gpu.requestAdapter({powerPreference: "high-performance"});
  if (!adapter) {
    const advice = "Check that hardware acceleration is on, and see chrome://gpu or about:support.";
    throw new LLMError("no-adapter", "The browser found no usable GPU.", "WebGPU offers no adapter.", advice);
  }
  checkLimits(adapter, plan);
  const facts = describe(adapter);
  const {subgroupMinSize: least, subgroupMaxSize: most} = adapter.info ?? {};
  const fits = (p) => p.features.every((f) => adapter.features.has(f)) && (!p.software || facts.software)
    && (!p.subgroupSize || (least === p.subgroupSize && most === p.subgroupSize));
  const profile = plan.profiles.find((p) => (wanted ? p.name === wanted : true) && fits(p));
  if (!profile) throw new LLMError("too-small", `The adapter cannot run the profile ${wanted}.`, facts.name);
  return {adapter, facts, profile};
}

function checkLimits(adapter, plan) {
  const small = Object.entries(plan.limits).filter(([name, need]) => adapter.limits[name] < need);
  if (!small.length) return;
  const why = small.map(([name, need]) => `${name}: needed ${need}, offered ${adapter.limits[name]}`).join("; ");
  const advice = "Use another GPU, or export the model with a smaller --dtype or --context.";
  throw new LLMError("too-small", "This GPU's limits are too small for the model.", `${why}.`, advice);
}

function describe(adapter) {
  const info = adapter.info ?? {};
  const name = info.description || info.device || [info.vendor, info.architecture].filter(Boolean).join(" ") || "GPU";
  const fallback = info.isFallbackAdapter ?? adapter.isFallbackAdapter ?? false;
  const software = fallback || /swiftshader|llvmpipe|basic render/i.test(`${name} ${info.architecture}`);
  return {name, vendor: info.vendor ?? "", architecture: info.architecture ?? "", software};
}

// --- the GPU ----------------------------------------------------------------------------------

/** A device with a profile's buffers, pipelines and plans. */
class Machine {
  #device; #plan; #tables; #buffers; #pipelines; #params; #groups = []; #steps = new Map(); #slots = []; #failure = null;
  #rate;

  /** Opens the device, compiles all pipelines and fills the buffers. */
  static async open({adapter, facts, profile}, place) {
    const machine = new Machine();
    const {plan, files, report} = place;
    const device = machine.#device = await adapter.requestDevice(
      {requiredFeatures: profile.features, requiredLimits: plan.limits});
    Object.assign(machine, {facts, profile, lost: null});
    device.lost.then((info) => (machine.lost = info.message || info.reason));
    device.onuncapturederror = ({error}) => (machine.#failure ??= error.message);
    machine.#plan = plan;
    machine.#rate = facts.software ? 3e9 : 2e11; // multiply-adds a second, until a long prompt has shown the true rate
    try {
      machine.#tables = JSON.parse(await files.text(profile.file, plan.files[profile.file]));
      await machine.#allocate(plan.buffers);
      await Promise.all([machine.#compile(files, report), machine.#fill(files, report)]);
      await machine.finish();
      report("upload", 1, 1);
    } catch (e) {
      device.destroy();
      throw e;
    }
    return machine;
  }

  get failure() {
    return this.#failure;
  }

  async #allocate(buffers) {
    const device = this.#device;
    device.pushErrorScope("out-of-memory");
    this.#buffers = new Map(buffers.map(({name, size}) =>
      [name, device.createBuffer({label: name, size, usage: STORAGE | COPY_DST | COPY_SRC})]));
    const {params} = this.#tables;
    this.#params = device.createBuffer({label: "params", size: params.length * PARAMS_ALIGN, usage: UNIFORM | COPY_DST});
    params.forEach((words, i) => device.queue.writeBuffer(this.#params, i * PARAMS_ALIGN, new Uint32Array(words)));
    if (!(await device.popErrorScope())) return;
    throw new LLMError("out-of-memory", `The GPU has no room for ${megabytes(this.#plan.memory.total)}.`,
      "Weights, cache and activations must fit its memory.", "Close other tabs, or export with a smaller --dtype.");
  }

  async #compile(files, report) {
    const {modules, layouts, programs} = this.#tables, device = this.#device;
    const made = await Promise.all(modules.map(async (file) => {
      const name = `shaders/${file}`;
      return device.createShaderModule({label: file, code: await files.text(name, this.#plan.files[name])});
    }));
    this.#tables.layouts = layouts.map((entries) => device.createBindGroupLayout({
      entries: entries.map(([binding, type]) => ({binding, visibility: COMPUTE, buffer: {type}})),
    }));
    let done = 0;
    report("compile", 0, programs.length);
    this.#pipelines = await Promise.all(programs.map(async ({label, module, entry, constants, layouts: own}) => {
      const layout = device.createPipelineLayout({bindGroupLayouts: own.map((i) => this.#tables.layouts[i])});
      const compute = {module: made[module], entryPoint: entry, constants};
      const pipeline = await device.createComputePipelineAsync({label, layout, compute}).catch((e) => {
        if (this.lost) throw lostError(this.lost);
        throw new LLMError("compile", `The browser refused the shader ${label}.`, e.message, "Please report it.");
      });
      report("compile", ++done, programs.length);
      return pipeline;
    }));
  }

  /** Downloads the shards one by one, and writes each to the buffers whose content it holds. */
  async #fill(files, report) {
    const total = this.#plan.shards.reduce((sum, shard) => sum + shard.bytes, 0);
    let begin = 0;
    report("download", 0, total);
    for (const shard of this.#plan.shards) {
      const data = await files.get(shard.file, shard, (bytes) => report("download", begin + bytes, total));
      for (const {name, size, at} of this.#plan.buffers) {
        if (at === undefined) continue;
        const from = Math.max(at, begin), to = Math.min(at + size, begin + shard.bytes);
        if (from < to) this.#device.queue.writeBuffer(this.#buffers.get(name), from - at, data, from - begin, to - from);
      }
      await this.finish(); // so that the browser's own copies do not pile up
      begin += shard.bytes;
      report("upload", begin, total);
    }
  }

  /** Writes 32-bit words to the beginning of a buffer. */
  write(name, words) {
    this.#device.queue.writeBuffer(this.#buffers.get(name), 0, words);
  }

  async finish() {
    await this.#device.queue.onSubmittedWorkDone();
    this.check();
  }

  check() {
    if (this.lost) throw lostError(this.lost);
    if (this.#failure) throw new LLMError("gpu", "The GPU reported an error.", this.#failure, "Please report it.");
  }

  /** Runs a long plan in submissions of about `PACE_SECONDS`, of which two wait at most. Stops after a signal. */
  async run(name, stopped) {
    const steps = this.#planned(name), pace = this.#rate * PACE_SECONDS, begun = performance.now();
    let begin = 0, work = 0, before = null;
    for (let i = 0; i < steps.length; i++) {
      work += steps[i].work;
      if (work < pace && i + 1 < steps.length) continue;
      this.#submit((encoder) => this.#encode(encoder, steps.slice(begin, i + 1)));
      const waiting = this.#device.queue.onSubmittedWorkDone();
      await before;
      this.check();
      if (stopped()) break;
      [begin, work, before] = [i + 1, 0, waiting];
    }
    await before;
    const total = steps.reduce((sum, step) => sum + step.work, 0);
    if (!stopped() && total > 4 * pace) this.#rate = total / ((performance.now() - begun) / 1000);
  }

  /** Submits a plan that samples a token; the promise has the words of its result. */
  async sample(name) {
    const result = this.#buffers.get("result"), size = result.size;
    const slot = this.#slots.pop() ?? this.#device.createBuffer({label: "staging", size, usage: MAP_READ | COPY_DST});
    this.#submit((encoder) => {
      this.#encode(encoder, this.#planned(name));
      encoder.copyBufferToBuffer(result, 0, slot, 0, size);
    });
    try {
      await slot.mapAsync(READ);
    } catch (e) {
      throw lostError(this.lost ?? e.message);
    }
    const words = new Uint32Array(slot.getMappedRange().slice(0));
    slot.unmap();
    this.#slots.push(slot);
    this.check();
    return words;
  }

  close() {
    this.#device.destroy();
  }

  #submit(encode) {
    this.check();
    const encoder = this.#device.createCommandEncoder();
    encode(encoder);
    this.#device.queue.submit([encoder.finish()]);
  }

  #encode(encoder, steps) {
    const pass = encoder.beginComputePass();
    for (const {pipeline, groups, x, y} of steps) {
      pass.setPipeline(pipeline);
      for (let i = 0; i < groups.length; i++) pass.setBindGroup(i, groups[i]);
      pass.dispatchWorkgroups(x, y);
    }
    pass.end();
  }

  /** The dispatches of a plan; their bind groups are made when it first runs. */
  #planned(name) {
    if (!this.#steps.has(name)) {
      this.#steps.set(name, this.#tables.plans[name].map(([program, groups, x, y, work]) => (
        {pipeline: this.#pipelines[program], groups: groups.map((i) => this.#group(i)), x, y, work})));
    }
    return this.#steps.get(name);
  }

  #group(number) {
    const [layout, entries] = this.#tables.groups[number];
    return this.#groups[number] ??= this.#device.createBindGroup({
      layout: this.#tables.layouts[layout],
      entries: entries.map(([binding, buffer, offset, size]) => ({
        binding,
        resource: buffer < 0 ? {buffer: this.#params, offset: offset * PARAMS_ALIGN, size}
          : {buffer: this.#buffers.get(this.#plan.buffers[buffer].name), offset, size},
      })),
    });
  }

  /** The rows of prefill plans and the positions of decode plans, each in rising order. */
  sizes(kind) {
    const found = Object.keys(this.#tables.plans).filter((name) => name.startsWith(`${kind} `));
    return [...new Set(found.map((name) => Number(name.split(" ")[1])))].sort((a, b) => a - b);
  }
}

const lostError = (why) => new LLMError("device-lost", "The GPU was lost.", `${why}`.trim(), "Load the page again.");

// --- generation -------------------------------------------------------------------------------

/** Packs structures of 32-bit fields as the plan's layouts say. */
function packed(layout, values) {
  const words = new Uint32Array(layout.reduce((sum, [, , count]) => sum + count, 0)), floats = new Float32Array(words.buffer);
  let at = 0;
  for (const [name, type, count] of layout) {
    [values[name] ?? 0].flat().forEach((value, i) => ((type === "f32" ? floats : words)[at + i] = value));
    at += count;
  }
  return words;
}

function unpacked(layout, words) {
  const floats = new Float32Array(words.buffer);
  return Object.fromEntries(layout.map(([name, type], i) => [name, (type === "f32" ? floats : words)[i]]));
}

/** A model on a GPU. Calls that overlap run one after another. */
export class LLM {
  #place; #plan; #machine; #text; #turn = Promise.resolve(); #held = []; #biased = false; #recovered = -Infinity;
  #closed = false;

  /** Use `load`. */
  constructor(place, machine, text) {
    this.#place = place;
    this.#plan = place.plan;
    this.#machine = machine;
    this.#text = text;
  }

  /** Facts about the model and the adapter; sizes are bytes. */
  get info() {
    const {model, memory, title} = this.#plan, {facts, profile} = this.#machine;
    const {name, context, vocabSize, dtype, parameters} = model;
    return {
      name, title, context, vocabSize, dtype, parameters, adapter: facts, profile: profile.name,
      hasChat: this.#text.chat !== null, generation: {...DEFAULTS, ...model.chatSettings},
      memory: {weights: memory.weights, cache: memory.kv, activations: memory.activations, total: memory.total},
    };
  }

  /** Token ids of a text, with BOS if the tokenizer adds it. */
  tokenize(text, options) {
    return this.#text.encode(text, options);
  }

  /** The text of token ids. */
  detokenize(ids, options) {
    ids.forEach((id) => checkId(id, this.#plan.model.vocabSize));
    return this.#text.decode(ids, options);
  }

  /** Continues a text, or token ids as they are; a `Stream` of pieces. */
  stream(prompt, options = {}) {
    const ids = typeof prompt === "string" ? this.#encoded(prompt) : [...prompt];
    return this.#start(ids, checked(options, this.#plan.model.vocabSize), false);
  }

  /** A prompt's ids. A text that cannot fit is refused before it is tokenized, which could take minutes. */
  #encoded(prompt) {
    const most = this.#plan.model.context * this.#text.longest;
    if (prompt.length <= most) return prompt ? this.tokenize(prompt) : [];
    throw contextFull(`The prompt has ${prompt.length} characters; the context holds at most ${most}.`);
  }

  async generate(prompt, options = {}) {
    return this.stream(prompt, options).result;
  }

  /** Answers a conversation of {role, content}; a `Stream` of pieces. What it shares with the last one is not run again. */
  chatStream(messages, options = {}) {
    const settings = checked({...this.#plan.model.chatSettings, ...options}, this.#plan.model.vocabSize);
    return this.#start(this.#text.renderChat(messages), settings, this.#plan.model.keepsPrefix);
  }

  async chat(messages, options = {}) {
    return this.chatStream(messages, options).result;
  }

  /** Frees the GPU. Running generations end with an error. */
  close() {
    this.#closed = true;
    this.#machine.close();
  }

  #start(ids, settings, reuse) {
    const {context, vocabSize, eosTokenIds} = this.#plan.model;
    ids.forEach((id) => checkId(id, vocabSize));
    if (!ids.length) throw new LLMError("bad-argument", "The prompt is empty.", "There is nothing to continue.");
    if (ids.length > context) {
      throw contextFull(`The prompt has ${ids.length} tokens; the context holds ${context}.`);
    }
    const limit = Math.min(settings.maxTokens, context - ids.length + 1);
    const stopIds = new Set([...settings.stopTokenIds, ...(settings.ignoreEos ? [] : eosTokenIds)]);
    const request = {ids, made: [], settings, reuse, limit, stopIds, cached: 0, stopped: () => false};
    const decoder = this.#text.stream({prompt: ids, stop: settings.stop});
    return new Stream(request, decoder, context, (r) => this.#tokens(r));
  }

  /** The ids that a request makes. Waits for its turn; goes on from its tokens after a lost device. */
  async *#tokens(request) {
    const before = this.#turn;
    let done;
    this.#turn = new Promise((resolve) => (done = resolve));
    await before;
    try {
      for (;;) {
        try {
          yield* this.#run(request);
          return;
        } catch (e) {
          if (e.code !== "device-lost") throw e;
          await this.#recover(e);
        }
      }
    } finally {
      done();
    }
  }

  /** One attempt: the prompt and the tokens made so far, then new ones. */
  async *#run(request) {
    const {made, limit, stopIds} = request, machine = this.#machine, flights = [];
    try {
      await this.#begin(request);
      if (request.stopped()) return;
      const prompt = request.ids.length;
      const step = (name) => {
        flights.push(machine.sample(`${name} ${request.settings.kind}`));
        flights.at(-1).catch(() => {}); // it is awaited later
      };
      if (!made.length) step("first");
      for (;;) {
        while (flights.length < IN_FLIGHT && made.length + flights.length < limit) {
          step(`decode ${this.#bucket("decode", prompt + made.length + flights.length)}`);
        }
        const result = unpacked(this.#plan.layouts.result, await flights.shift());
        if (result.not_finite) {
          throw new LLMError("not-finite", `The logits are not finite after ${prompt + made.length} tokens.`,
            "The weights are broken, or values exceed float16.", "Export the model with --dtype float32.");
        }
        this.#held.push(...(made.length ? made.slice(-1) : []));
        made.push(result.token);
        yield result.token;
        if (request.stopped() || stopIds.has(result.token) || made.length >= limit) return;
      }
    } finally {
      await Promise.allSettled(flights); // their results are not wanted
    }
  }

  /** Runs the tokens that the cache lacks, and writes the state of the first step. */
  async #begin(request) {
    const {ids, made, settings, stopped} = request, machine = this.#machine, {padding} = this.#plan.model;
    const tokens = [...ids, ...made], end = tokens.length - (made.length ? 1 : 0); // the newest is not in the cache
    let done = request.reuse ? common(this.#held, tokens.slice(0, end - (made.length ? 0 : 1))) : 0;
    request.cached = Math.min(done, ids.length);
    this.#held.length = done;
    const {layouts} = this.#plan;
    let rows = 0;
    while (done < end && !stopped()) {
      const chunk = tokens.slice(done, Math.min(end, done + this.#plan.model.prefillRows));
      rows = chunk.length;
      const plan = this.#bucket("prefill", rows);
      const state = Array.from({length: plan}, (_, i) => packed(layouts.row, {
        token: chunk[i], position: done + Math.min(i, rows - 1), slot: i < rows ? 0 : padding}));
      machine.write("rows", joined(state));
      await machine.run(`prefill ${plan}`, stopped);
      if (stopped()) return; // perhaps in the middle of the chunk
      this.#held.push(...chunk);
      done += rows;
    }
    this.#count(request);
    machine.write("picks", packed(layouts.row, {token: rows - 1}));
    machine.write("rows", packed(layouts.row, {token: tokens.at(-1), position: tokens.length - 1}));
    machine.write("draws", packed(layouts.draw, this.#draw(request)));
    machine.write("cuts", new Uint32Array(layouts.noCut));
    if (settings.kind === "filtered") machine.write("settings", packed(layouts.setting, setting(settings)));
  }

  #draw({ids, settings, limit, stopIds}) {
    const most = this.#plan.layouts.draw.find(([name]) => name === "stop_ids")[2];
    const stops = [...stopIds].sort((a, b) => a - b).slice(0, most); // the host checks the others
    const {temperature, kind, seed} = settings;
    const factor = !temperature ? 0 : kind === "plain" ? 1 / temperature : 1;
    return {seed, factor, last: ids.length + limit - 1, stops: stops.length, stop_ids: stops};
  }

  /** Writes the counts of tokens and the biases, if a setting reads them. */
  #count({ids, made, settings}) {
    const {vocabSize} = this.#plan.model;
    if (settings.counted) {
      const counts = new Uint32Array(vocabSize);
      made.forEach((id) => counts[id]++);
      ids.forEach((id) => (counts[id] = (counts[id] | this.#plan.layouts.promptBit) >>> 0));
      this.#machine.write("counts", counts);
    }
    if (!settings.bias.length && !this.#biased) return;
    const biases = new Float32Array(vocabSize);
    settings.bias.forEach(([id, value]) => (biases[id] = value));
    this.#machine.write("bias", biases);
    this.#biased = settings.bias.length > 0;
  }

  /** The smallest plan of a kind for so many rows or positions. */
  #bucket(kind, count) {
    return this.#machine.sizes(kind).find((size) => size >= count);
  }

  /** Loads the model again after a loss, once in a minute. */
  async #recover(error) {
    const now = performance.now() / 1000;
    if (this.#closed) throw new LLMError("closed", "The model was closed.", "It was still generating.", "Load it again.");
    if (now - this.#recovered < RECOVERY_SECONDS) throw error;
    this.#recovered = now;
    this.#place.onNotice?.("The GPU was lost; loading the model again.");
    this.#machine.close();
    this.#held = [];
    this.#biased = false;
    const chosen = await choose(this.#place.gpu, this.#plan, this.#machine.profile.name);
    this.#machine = await Machine.open(chosen, this.#place);
    this.#place.onNotice?.("");
  }
}

const contextFull = (what) => new LLMError("context-full", what, "Nothing was cut.",
  "Shorten it, or export the model with a larger --context.");

function setting(o) {
  const drawn = o.temperature > 0; // filters cannot change an arg max
  return {
    inverse_temperature: drawn ? 1 / o.temperature : 1, repetition: o.repetitionPenalty, presence: o.presencePenalty,
    frequency: o.frequencyPenalty, top_k: drawn ? o.topK : 0, top_p: drawn ? o.topP : 1, min_p: drawn ? o.minP : 0,
  };
}

function common(a, b) {
  let n = 0;
  while (n < a.length && n < b.length && a[n] === b[n]) n++;
  return n;
}

function joined(parts) {
  const out = new Uint32Array(parts.length * parts[0].length);
  parts.forEach((part, i) => out.set(part, i * part.length));
  return out;
}

/** A running generation: an async iterator of text pieces, which never split a character; `result` is a promise. */
export class Stream {
  #pieces = []; #wake = () => {}; #request; #cancelled = false; #ended = false;

  constructor(request, decoder, context, run) {
    this.#request = request;
    request.stopped = () => this.#cancelled || request.settings.signal?.aborted;
    this.result = this.#collect(decoder, context, run).finally(() => {
      this.#ended = true;
      this.#wake();
    });
    this.result.catch(() => {}); // who iterates gets the error there
  }

  /** Stops generating; the result has the text so far. */
  cancel() {
    this.#cancelled = true;
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (;;) {
        while (this.#pieces.length) yield this.#pieces.shift();
        if (this.#ended) break;
        await new Promise((resolve) => (this.#wake = resolve));
      }
      await this.result;
    } finally {
      this.cancel();
    }
  }

  async #collect(decoder, context, run) {
    const {ids, made, stopIds, settings} = this.#request, begun = performance.now(), texts = [];
    const take = (piece) => {
      if (!piece) return;
      texts.push(piece);
      this.#pieces.push(piece);
      this.#wake();
    };
    let first = begun, reason = "length";
    for await (const id of run(this.#request)) {
      if (made.length === 1) first = performance.now();
      if (stopIds.has(id)) reason = "stop";
      else take(decoder.push(id));
      if (decoder.stopped) break;
    }
    take(decoder.flush());
    if (decoder.stopped) reason = "stop";
    else if (reason === "length" && made.length < this.#request.limit) reason = "cancelled";
    const seconds = {prefillSeconds: (first - begun) / 1000, decodeSeconds: (performance.now() - first) / 1000};
    return {
      text: texts.join(""), tokenIds: made, promptTokenIds: ids, promptTokens: ids.length, finishReason: reason,
      completionTokens: made.length, cachedTokens: this.#request.cached, seed: settings.temperature ? settings.seed : null,
      contextFull: reason === "length" && ids.length + made.length >= context, timings: seconds,
    };
  }
}
