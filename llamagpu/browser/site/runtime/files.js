// files.js: the files of a site, checked by hash, and kept in the browser's cache storage.

import {LLMError} from "./errors.js";

/** Downloads files of known sizes and hashes, and keeps them under their hashes. */
export class Files {
  #base; #fetch; #signal; #notice; #keep; #store = null; #used = new Set();

  constructor(base, {fetch: fetcher, signal, onNotice, cache = true}) {
    this.#base = base;
    this.#fetch = fetcher ?? globalThis.fetch.bind(globalThis);
    this.#signal = signal;
    this.#notice = onNotice ?? (() => {});
    this.#keep = cache && "caches" in globalThis;
  }

  /** A JSON file that is not cached. */
  async freshJson(name) {
    const text = await this.#online(name, (await this.#request(name)).text());
    try {
      return JSON.parse(text);
    } catch {
      throw damaged(name, "It is not JSON.");
    }
  }

  /** The text of a file whose size and hash (`about`) are known. */
  async text(name, about) {
    return new TextDecoder().decode(await this.get(name, about));
  }

  /** Prepares for files of these sizes; says so if there is no room to keep them. */
  async expect(list) {
    if (!this.#keep) return;
    try {
      this.#store = await caches.open(this.#name);
    } catch { // storage is switched off
      this.#keep = false;
      return;
    }
    const {quota, usage} = (await navigator.storage?.estimate?.()) ?? {};
    const stored = new Set((await this.#store.keys()).map((request) => request.url));
    const missing = list.filter((f) => !stored.has(this.#key(f))).reduce((sum, f) => sum + f.bytes, 0);
    if (quota !== undefined && missing > quota - usage) await this.#keepNothing();
  }

  /** The bytes of a file whose size and hash are known. */
  async get(name, about, onBytes = () => {}) {
    const stored = await this.#stored(name, about);
    if (stored) return onBytes(about.bytes), stored;
    if (!this.#store || !navigator.locks) return this.#fresh(name, about, onBytes);
    const lock = `llamagpu ${about.sha256}`; // so that two tabs do not download the same
    const mine = await navigator.locks.request(lock, {ifAvailable: true},
      (held) => (held ? this.#fresh(name, about, onBytes) : null));
    if (mine) return mine;
    this.#notice("Another tab is downloading this model; waiting for it.");
    return navigator.locks.request(lock, {signal: this.#signal}, async () => {
      const found = await this.#stored(name, about);
      return found ? (onBytes(about.bytes), found) : this.#fresh(name, about, onBytes);
    });
  }

  /** Removes what earlier exports of this site left in the cache. */
  async dropOthers() {
    for (const request of (await this.#store?.keys()) ?? []) {
      if (!this.#used.has(request.url)) await this.#store.delete(request);
    }
  }

  get #name() {
    return `llamagpu ${this.#base.href}`;
  }

  #key(about) {
    return new URL(`sha256-${about.sha256}`, this.#base).href;
  }

  async #stored(name, about) {
    if (!this.#store) return null;
    this.#used.add(this.#key(about));
    const bytes = await (await this.#store.match(this.#key(about)))?.arrayBuffer();
    if (!bytes) return null;
    if (await matches(bytes, about)) return bytes;
    await this.#store.delete(this.#key(about));
    return null;
  }

  async #fresh(name, about, onBytes) {
    const bytes = await this.#download(name, about, onBytes);
    if (!(await matches(bytes, about))) {
      throw damaged(name, `Its ${bytes.byteLength} bytes are not those that were exported (${about.bytes} bytes).`);
    }
    try {
      await this.#store?.put(this.#key(about), new Response(bytes));
    } catch { // the quota is exceeded
      await this.#keepNothing();
    }
    return bytes;
  }

  async #keepNothing() {
    this.#store = null;
    this.#keep = false;
    await caches.delete(this.#name);
    const what = "There is no room in the browser's storage to keep the model";
    this.#notice(`${what}: it is downloaded again on the next visit.`, {lasting: true});
  }

  async #download(name, about, onBytes) {
    const response = await this.#request(name);
    const out = new Uint8Array(about.bytes);
    let end = 0;
    for (const reader = response.body.getReader(); ;) {
      const {done, value} = await this.#online(name, reader.read());
      if (done) break;
      if (end + value.length > out.length) throw damaged(name, `It is longer than ${out.length} bytes.`);
      out.set(value, end);
      onBytes(end += value.length);
    }
    if (end < out.length) throw damaged(name, `It ends after ${end} of ${out.length} bytes.`);
    return out.buffer;
  }

  async #request(name) {
    const options = {signal: this.#signal, cache: "no-cache"};
    const response = await this.#online(name, this.#fetch(new URL(name, this.#base), options));
    if (response.ok) return response;
    throw new LLMError("not-found", `${name} could not be downloaded.`, `The server answered ${response.status}.`,
      "Check that the whole site was uploaded.");
  }

  /** What a request gives; an error of the network becomes ours. */
  async #online(name, answer) {
    try {
      return await answer;
    } catch (e) {
      if (this.#signal?.aborted) throw this.#signal.reason;
      throw new LLMError("offline", `${name} could not be downloaded.`, `The server cannot be reached: ${e.message}.`,
        "Check the connection and load the page again; files that are complete are kept.");
    }
  }
}

const damaged = (name, why) => new LLMError("damaged", `${name} is damaged.`, why,
  "Load the page again. If it happens again, the file on the server is not the one that was exported.");

async function matches(bytes, {bytes: size, sha256}) {
  if (bytes.byteLength !== size) return false;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((b) => b.toString(16).padStart(2, "0")).join("") === sha256;
}

