// The measurement of a loaded engine, the same in a page and in Node.

/**
 * @typedef {{ids: number[], text: string}} Prompt the same tokens in both forms
 *
 * @typedef {object} Model an engine with a loaded model
 * @property {string} about its version
 * @property {(prompt: Prompt, count: number) => Promise<unknown>} generate greedy tokens after a prompt; an end token
 *   does not end them
 * @property {(prompt: Prompt, count: number) => Promise<number[]>} greedy the same, and gives the new ids
 */

const LEAST_SECONDS = 1; // a test of a fast engine is repeated for so long

/** Seconds that a call takes. */
async function seconds(call) {
  const start = performance.now();
  await call();
  return (performance.now() - start) / 1e3;
}

/**
 * Tokens a second of decoding: the tokens after the first one, over the time that they add.
 *
 * @param {Model} model
 * @param {Prompt} prompt
 * @param {number} count tokens to generate
 */
export async function decodeSpeed(model, prompt, count) {
  let first = 0, all = 0, tokens = 0;
  while (all < LEAST_SECONDS) {
    first += await seconds(() => model.generate(prompt, 1));
    all += await seconds(() => model.generate(prompt, count));
    tokens += count - 1;
  }
  return tokens / (all - first);
}

/**
 * Prompt tokens a second until the first new token. No engine may know the prompt from the call before.
 *
 * @param {Model} model
 * @param {Prompt} prompt
 */
export async function promptSpeed(model, prompt) {
  let all = 0, tokens = 0;
  while (all < LEAST_SECONDS) {
    all += await seconds(() => model.generate(prompt, 1));
    tokens += prompt.ids.length;
  }
  return tokens / all;
}
