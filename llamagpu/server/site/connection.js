// The connection to a server: requests with its key, its errors, and its streams.

const KEY = "llamagpu-api-key"; // in the session's storage, which ends with the tab
const RETRIES_AFTER = 2; // seconds, where a busy server names none

const CODES = {
  model_not_found: "not-found",
  not_found: "not-found",
  context_length_exceeded: "context-full",
  device_lost: "device-lost",
  out_of_memory: "out-of-memory",
};
const ADVICE = {
  "bad-argument": "Change the settings or the text.",
  "context-full": "Shorten the conversation, or begin a new one.",
  "device-lost": "Start the server again.",
  "not-found": "Check the server's models.",
  "no-template": "Continue a text instead.",
  offline: "Check that the server runs, and try again.",
  closed: "Load the model again.",
};

/** An error in three sentences: what happened, why, and what to do. */
export class LLMError extends Error {
  constructor(code, what, why = "", advice = ADVICE[code] ?? "Try again.") {
    super([what, why, advice].filter(Boolean).join(" "));
    Object.assign(this, { name: "LLMError", code, what, why, advice });
  }
}

/** Requests to the server: its key, its errors, and its patience. */
export class Server {
  constructor(base, { fetch = globalThis.fetch, onNotice = () => {}, askKey = askForKey }) {
    this.base = new URL(base.endsWith("/") ? base : `${base}/`, globalThis.location?.href);
    Object.assign(this, { fetch: fetch.bind(globalThis), onNotice, askKey, key: stored(KEY) });
  }

  /** The JSON of an answer. */
  async json(path, { body, signal } = {}) {
    return (await this.answer(path, { body, signal })).json();
  }

  /** The response to a request. Waits while the server is busy or loads its models; asks for a key if it wants one. */
  async answer(path, { body, signal } = {}) {
    for (;;) {
      const response = await this.send(path, body, signal);
      if (response.ok) return response;
      const error = (await response.json().catch(() => ({}))).error ?? {};
      if (response.status === 401) await this.needKey();
      else if (response.status === 429 || error.code === "loading") {
        this.onNotice(`${error.message} Waiting.`);
        await sleep(Number(response.headers.get("retry-after")) || RETRIES_AFTER, signal);
      } else throw failure(response.status, error);
    }
  }

  async send(path, body, signal) {
    const headers = this.key ? { authorization: `Bearer ${this.key}` } : {};
    const sent = body && { method: "POST", body: JSON.stringify(body) };
    if (body) headers["content-type"] = "application/json";
    try {
      return await this.fetch(new URL(path, this.base), { ...sent, headers, signal, cache: "no-store" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new LLMError("offline", "The server does not answer.", `${error.message}.`);
    }
  }

  async needKey() {
    const given = await this.askKey(this.key ? "The key is wrong. The server's API key:" : "The server's API key:");
    if (!given) throw new LLMError("bad-argument", "The server wants a key.", "None was given.", "Reload the page.");
    this.key = given.trim();
    try {
      globalThis.sessionStorage?.setItem(KEY, this.key);
    } catch {
      // the browser gives no storage; the key is asked for again
    }
  }
}

/** The JSON of server-sent events, up to [DONE]. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      if (part.startsWith("data: ")) yield JSON.parse(part.slice(6)); // others are comments
    }
  }
}

/** The error of a response. */
export function failure(status, { code, message }) {
  const kind = CODES[code] ?? (status === 400 || status === 413 ? "bad-argument" : "offline");
  return new LLMError(kind, "The server refused the request.", message ?? `It answered with the status ${status}.`);
}

function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

function askForKey(text) {
  return globalThis.prompt?.(text);
}

function stored(name) {
  try {
    return globalThis.sessionStorage?.getItem(name) ?? "";
  } catch {
    return ""; // the browser gives no storage
  }
}
