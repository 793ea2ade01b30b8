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
  const first = await seconds(() => model.generate(prompt, 1));
  const all = await seconds(() => model.generate(prompt, count));
  return (count - 1) / (all - first);
}

/**
 * Prompt tokens a second until the first new token.
 *
 * @param {Model} model
 * @param {Prompt} prompt
 */
export async function promptSpeed(model, prompt) {
  return prompt.ids.length / (await seconds(() => model.generate(prompt, 1)));
}
