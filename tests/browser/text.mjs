// Runs text.js of an exported site: node text.mjs SITE, jobs as JSON on standard input, results on standard output.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const site = process.argv[2];
const { Text } = await import(pathToFileURL(join(site, "text.js")).href);

const calls = {
  encode: (text, { text: given, options }) => text.encode(given, options),
  decode: (text, { ids, options }) => text.decode(ids, options),
  stream: (text, { ids, options }) => {
    const stream = text.stream(options);
    return { pieces: [...ids.map((id) => stream.push(id)), stream.flush()], stopped: stream.stopped };
  },
  prompt: (text, { messages, options }) => text.rendered(messages, withClock(options)).text,
  chat: (text, { messages, options }) => text.renderChat(messages, withClock(options)),
};

function withClock({ now, ...options } = {}) {
  return now ? { ...options, now: new Date(now) } : options;
}

/** A result, or an LLMError's parts. Other errors end the process. */
function attempt(work) {
  try {
    return work();
  } catch (error) {
    if (error.name !== "LLMError") throw error;
    const { code, what, why, advice } = error;
    return { error: code, what, why, advice };
  }
}

const read = (folder, name) => JSON.parse(readFileSync(join(folder, name), "utf8"));
const jobs = JSON.parse(readFileSync(0, "utf8"));
const results = jobs.map(({ folder, work }) => {
  const text = attempt(() => new Text(read(folder, "tokenizer.json"), read(folder, "text.json")));
  return text.error ? text : work.map(([name, given]) => attempt(() => calls[name](text, given)));
});
process.stdout.write(JSON.stringify(results));
