// options.js: the options of a generation, with the names of Python's in camel case.

import {LLMError} from "./errors.js";

export const DEFAULTS = {
  maxTokens: 256, temperature: 0, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, presencePenalty: 0,
  frequencyPenalty: 0, logitBias: {}, seed: null, stop: [], stopTokenIds: [], ignoreEos: false, signal: null,
};
const RANGES = {
  maxTokens: [1, Infinity, true], temperature: [0, 100], topK: [0, 2 ** 32 - 1, true], topP: [5e-324, 1],
  minP: [0, 1 - 2 ** -53], repetitionPenalty: [5e-324, 10], presencePenalty: [-100, 100], frequencyPenalty: [-100, 100],
  seed: [0, 2 ** 32 - 1, true],
};

/** The options of a generation with their defaults, checked as Python checks them. */
export function checked(given, vocabSize) {
  const bad = (name, why) => new LLMError("bad-argument", `${name} is ${JSON.stringify(given[name])}.`, why);
  for (const name of Object.keys(given)) {
    if (!(name in DEFAULTS)) throw bad(name, `There is no such option. Known: ${Object.keys(DEFAULTS).join(", ")}.`);
  }
  const defined = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined && value !== null));
  const o = {...DEFAULTS, ...defined};
  o.seed ??= crypto.getRandomValues(new Uint32Array(1))[0];
  for (const [name, [least, most, whole]] of Object.entries(RANGES)) {
    const right = typeof o[name] === "number" && o[name] >= least && o[name] <= most;
    if (!right || (whole && o[name] !== Infinity && !Number.isInteger(o[name]))) {
      throw bad(name, `It must be ${whole ? "a whole number" : "a number"} from ${least} to ${most}.`);
    }
  }
  if (o.temperature > 0 && o.temperature < 1e-3) throw bad("temperature", "It must be 0, or from 0.001 to 100.");
  o.stop = typeof o.stop === "string" ? [o.stop] : [...o.stop];
  o.bias = Object.entries(o.logitBias).map(([id, value]) => [Number(id), value]);
  for (const id of [...o.stopTokenIds, ...o.bias.map(([id]) => id)]) checkId(id, vocabSize);
  if (!o.bias.every(([, value]) => Math.abs(value) <= 10000)) throw bad("logitBias", "Biases are from -10000 to 10000.");
  o.counted = o.repetitionPenalty !== 1 || o.presencePenalty !== 0 || o.frequencyPenalty !== 0;
  const filters = o.temperature > 0 && (o.topK > 0 || o.topP < 1 || o.minP > 0);
  o.kind = o.counted || filters || o.bias.length ? "filtered" : "plain";
  return o;
}

/** Refuses what is not a token id. */
export function checkId(id, vocabSize) {
  if (Number.isInteger(id) && id >= 0 && id < vocabSize) return;
  throw new LLMError("bad-argument", `${id} is not a token id of this model.`, `Ids run from 0 to ${vocabSize - 1}.`);
}
