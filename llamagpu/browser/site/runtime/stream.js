/** Streaming decode and stop strings, as llamagpu/text/stream.py has them. */
import { isText, shown } from "./chat.js";
import { LLMError } from "./errors.js";

export const REPLACEMENT = "\ufffd";
const WINDOW = 16; // ids of the prompt before the new ones; enough for every character

/**
 * Incremental decoding: `push` ids, take text; `flush` at the end. Pieces never split a character, and never hold a
 * part of a stop string. Once `stopped`, a stop string was found. All pieces together are the text that the ids add to
 * the prompt.
 *
 * A window of ids is decoded with and without the new ones, and the difference is the new text. If it ends with U+FFFD,
 * that is held back, because an unfinished character decodes to it. The window begins with ids whose text was already
 * returned (at first the end of the prompt), because decoders drop the leading space of the first token. After a
 * special token a new text begins.
 */
export class TextStream {
  constructor(text, { prompt = [], stop = [], skipSpecialTokens = true } = {}) {
    if (!stop.every((s) => isText(s) && s)) {
      throw new LLMError("bad-argument", `${shown(stop)} are not stop strings.`, "They are texts that are not empty.");
    }
    Object.assign(this, { text, stop, skip: skipSpecialTokens, stopped: false });
    const special = prompt.findLastIndex((id) => text.special.has(id)); // a new text begins after it
    this.ids = prompt.slice(special + 1).slice(-WINDOW);
    this.begin = 0; // of the window
    this.read = this.ids.length; // ids whose text was returned
    this.out = 0; // characters of the later ids that were returned too
    this.held = ""; // text that may begin a stop string
  }

  /** Add an id. @returns {string} The text that is now certain. */
  push(id) {
    if (this.skip && this.text.special.has(id)) return "";
    this.ids.push(id);
    const text = this.pending();
    if (text.at(-1) !== REPLACEMENT) return this.filter(this.emit(text));
    const piece = text.slice(this.out, -1);
    this.out += piece.length;
    return this.filter(piece.join(""));
  }

  /** The text still held back; bytes that never became a character are U+FFFD. @returns {string} */
  flush() {
    const rest = this.filter(this.emit(this.pending())) + this.held;
    this.held = "";
    return rest;
  }

  /** The characters that follow those of the ids before `read`. A character may have two units, U+FFFD has one. */
  pending() {
    const decode = (ids) => [...this.text.decode(ids, { skipSpecialTokens: false })];
    return decode(this.ids.slice(this.begin)).slice(decode(this.ids.slice(this.begin, this.read)).length);
  }

  emit(characters) {
    const piece = characters.slice(this.out).join("");
    this.out = 0;
    if (characters.length) [this.begin, this.read] = [this.read, this.ids.length];
    return piece;
  }

  /** Passes text up to the first stop string, and holds back text that may begin one. */
  filter(text) {
    if (this.stopped) return "";
    this.held += text;
    const found = this.stop.map((s) => this.held.indexOf(s)).filter((at) => at >= 0);
    this.stopped = found.length > 0;
    const keep = Math.max(0, ...this.stop.map((s) => overlap(this.held, s)));
    const cut = this.stopped ? Math.min(...found) : this.held.length - keep;
    const out = this.held.slice(0, cut);
    this.held = this.stopped ? "" : this.held.slice(cut);
    return out;
  }
}

/** Length of the longest end of a text that begins a stop string. */
function overlap(text, stop) {
  for (let n = Math.min(stop.length - 1, text.length); n > 0; n--) if (text.endsWith(stop.slice(0, n))) return n;
  return 0;
}
