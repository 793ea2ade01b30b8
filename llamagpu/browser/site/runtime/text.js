/** A model's text: tokens, streaming decode, stop strings and chats, with the ids that llamagpu gives in Python. */
import { Chat, isText, shown } from "./chat.js";
import { LLMError } from "./errors.js";
import { anyOf } from "./marks.js";
import { REPLACEMENT, TextStream } from "./stream.js";
import { openTokenizer, Shield } from "./tokenizer.js";

export class Text {
  /**
   * @param {object} tokenizer tokenizer.json of the site.
   * @param {object} settings text.json of the site (llamagpu/browser/text.py).
   * @throws {LLMError} "no-tokenizer": it cannot be read, or this browser's ids would differ from llamagpu's.
   */
  constructor(tokenizer, settings) {
    this.settings = settings;
    try {
      this.tokenizer = openTokenizer(tokenizer);
    } catch (error) {
      throw unusable(String(error.message)); // such as a regular expression that only Python's library has
    }
    const { added_tokens: added } = this.tokenizer;
    this.special = new Map(added.filter((token) => token.special).map((token) => [token.id, token.content]));
    this.reserved = new Set(this.special.values());
    this.added = new RegExp(anyOf(added.map((token) => token.content)), "g");
    this.bytes = new Map(bytes().map(([name, byte]) => [this.tokenizer.token_to_id(name), byte]));
    this.bytes.delete(undefined);
    /** Characters of the longest token. */
    this.longest = settings.longest;
    /** Why there is no chat, or null. @type {LLMError | null} */
    this.chatError = null;
    this.checkTokenizer();
    this.chat = this.openChat();
  }

  /**
   * Ids of a text. Special tokens in it are recognised. With `addSpecialTokens`, ids include BOS and others that the
   * tokenizer adds; a text that begins with BOS gets no second one.
   * @returns {number[]}
   */
  encode(text, { addSpecialTokens = true } = {}) {
    if (!isText(text)) {
      const why = "It must be a string of whole Unicode characters.";
      throw new LLMError("bad-argument", `${shown(text)} is not text.`, why);
    }
    const { ids } = this.tokenizer.encode(text, { add_special_tokens: false });
    if (!addSpecialTokens) return ids;
    const { prefix, suffix } = this.settings;
    const all = [...prefix, ...ids, ...suffix];
    return prefix.length && all[0] === all[1] && all[0] === prefix[0] ? all.slice(1) : all;
  }

  /** Text of ids. Bytes that are not UTF-8 become U+FFFD. @returns {string} */
  decode(ids, { skipSpecialTokens = true } = {}) {
    const known = ids.filter((id) => this.tokenizer.id_to_token(id) !== undefined);
    const kept = known.filter((id) => !(skipSpecialTokens && this.special.has(id)));
    const cut = this.unfinishedBytes(kept);
    const whole = cut ? kept.slice(0, -cut) : kept;
    const text = whole.length ? this.tokenizer.decode(whole, { clean_up_tokenization_spaces: false }) : "";
    return cut ? text + REPLACEMENT : text;
  }

  /**
   * Ids of a conversation, up to the beginning of the answer. Special tokens in the messages are ordinary text: only
   * the template writes them, and BOS.
   * @param {{role: string, content: string}[]} messages
   * @returns {number[]}
   */
  renderChat(messages, options = {}) {
    const { text, marked } = this.rendered(messages, options);
    const places = (where) => {
      const found = [...where.matchAll(this.added)].map((match) => ({ index: match.index, content: match[0] }));
      return found.filter(({ content }) => this.reserved.has(content));
    };
    const meant = places(marked);
    if (places(text).length === meant.length) return this.encode(text, { addSpecialTokens: false });
    this.shield ??= new Shield(this.tokenizer);
    return this.shield.encode(text, meant);
  }

  /** The text of a conversation, before it becomes ids, and its marks. See `Chat.render`. */
  rendered(messages, options = {}) {
    if (!this.chat) throw this.chatError;
    return this.chat.render(messages, options);
  }

  /**
   * A decoder for new ids.
   * @param {{prompt?: number[], stop?: string[], skipSpecialTokens?: boolean}} options The ids before the new ones;
   *   strings that end the text.
   */
  stream(options = {}) {
    return new TextStream(this, options);
  }

  /** The number of byte tokens at the end that begin an unfinished UTF-8 character. */
  unfinishedBytes(ids) {
    for (let back = 1; back <= Math.min(3, ids.length); back++) {
      const byte = this.bytes.get(ids.at(-back));
      if (byte === undefined || byte < 0x80) return 0;
      if (byte >= 0xc0) return back < (byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4) ? back : 0;
    }
    return 0;
  }

  /** Browsers know different versions of Unicode: what Python gave for some texts must come out here. */
  checkTokenizer() {
    for (const [text, ids, decoded] of this.settings.probes) {
      const found = this.encode(text);
      if (String(found) === String(ids) && this.decode(ids) === decoded) continue;
      throw unusable(`${shown(text)} has the ids ${found}; llamagpu gives ${ids}.`);
    }
  }

  /** The chat template, if it renders here as it does in Python. */
  openChat() {
    const { chat, special } = this.settings;
    let [what, why] = ["The model's chat template does not work in a browser.", ""];
    if (!chat) {
      [what, why] = ["The model has no chat template.", "It was not made for conversations."];
    } else if (chat.refused) {
      [what, why] = ["The model's chat template cannot be used.", chat.refused];
    } else {
      try {
        const made = new Chat(chat, special, [...this.reserved]);
        const wrong = chat.probes.find((probe) => !renders(made, probe, new Date(chat.now)));
        if (!wrong) return made;
        why = `It renders ${shown(wrong.messages)} differently.`;
      } catch (error) {
        why = String(error.message); // the library cannot read it
      }
    }
    this.chatError = new LLMError("no-template", what, why, "Generate text from a prompt.");
    return null;
  }
}

function unusable(why) {
  const advice = "Update the browser, or use another one or another model.";
  return new LLMError("no-tokenizer", "The tokenizer does not work in this browser.", why, advice);
}

/** Whether a conversation has the text that Python gave it; null if Python's template refuses it. */
function renders(chat, { messages, addGenerationPrompt, text }, now) {
  try {
    return chat.render(messages, { addGenerationPrompt, now }).text === text;
  } catch {
    return text === null;
  }
}

/** The names of byte tokens, <0x00> to <0xFF>, with their bytes. */
function bytes() {
  const hex = (byte) => byte.toString(16).toUpperCase().padStart(2, "0");
  return Array.from({ length: 256 }, (_, byte) => [`<0x${hex(byte)}>`, byte]);
}
