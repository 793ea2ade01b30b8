// This project's export: the site's own module.

/** @param {import("./browser_page.mjs").Job} job */
export async function open(job) {
  const { load } = await import(`${job.model}/llamagpu.js`);
  return wrap(await load(new URL(job.model, location.href).href));
}

/** A loaded model as the benchmark uses it. */
export function wrap(llm) {
  const greedy = async ({ ids }, count) => {
    const found = await llm.generate(ids, { maxTokens: count, temperature: 0, ignoreEos: true });
    return found.tokenIds;
  };
  return { about: `llamagpu, profile ${llm.info.profile}, ${llm.info.dtype}`, generate: greedy, greedy };
}
