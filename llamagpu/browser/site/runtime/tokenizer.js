/**
 * The tokenizer library, mended where it differs from the `tokenizers` library of Python and Rust.
 *
 * Parts of tokenizer.json that it computes differently and that other parts can replace were replaced when the site was
 * exported (llamagpu/browser/tokenizer.py). The rest is here. It relies on names inside the library, whose version is
 * pinned.
 */
import {
  ByteFallbackDecoder,
  ByteLevelDecoder,
  ByteLevelPreTokenizer,
  MetaspaceDecoder,
  Model,
  Tokenizer,
} from "./libraries/tokenizers.js";
import { LLMError } from "./errors.js";

// JavaScript's \s has U+FEFF and lacks U+0085.
const SPACE = "\\p{White_Space}";
const GPT_2 = new RegExp(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|${SPACE}+(?!\\P{White_Space})|${SPACE}+`,
  "gu",
);
const LETTERS = new ByteLevelPreTokenizer({}).byte_encoder; // the letter for each byte
const BYTES = new Map(Object.entries(LETTERS).map(([byte, letter]) => [letter, Number(byte)]));
const UTF8 = new TextEncoder();
const NONCHARACTER = "\ufdd0"; // which no text contains
const PRIVATE = 0xe000;
const PRIVATE_SIZE = 6400;

/**
 * @param {object} json A tokenizer.json.
 * @returns {Tokenizer} The library's tokenizer, mended.
 */
export function openTokenizer(json) {
  const tokenizer = new Tokenizer(json, {});
  const { model } = tokenizer;
  // Unknown tokens are joined within a piece of text, not across pieces.
  model._call = (pieces) => pieces.flatMap((piece) => Model.prototype._call.call(model, [piece]));
  // Added tokens are no part of the model's vocabulary: a piece of text that spells one is merged as any other.
  const { vocab } = json.model;
  const own = Array.isArray(vocab) ? new Set(vocab.map(([piece]) => piece)) : new Set(Object.keys(vocab));
  for (const { content } of tokenizer.added_tokens) {
    if (!own.has(content)) model.tokens_to_ids.delete(content);
  }
  setAdded(tokenizer, tokenizer.added_tokens);
  for (const [content, { id }] of tokenizer.added_tokens_map) model.vocab[id] = content;
  for (const step of tokenizer.pre_tokenizer?.tokenizers ?? []) {
    if (step instanceof ByteLevelPreTokenizer) step.pattern = GPT_2;
  }
  for (const step of tokenizer.decoder?.decoders ?? []) mendDecoder(step);
  return tokenizer;
}

/** Which texts are tokens before anything else: those to find in the text itself, and those in the normalized text. */
function setAdded(tokenizer, tokens) {
  const Splitter = tokenizer.splitter_unnormalized.constructor;
  const { normalizer } = tokenizer;
  const found = { true: new Map(), false: new Map() };
  for (const token of tokens.filter((t) => t.content)) {
    const content = token.normalized && normalizer ? normalizer(token.content) : token.content;
    found[token.normalized].set(content, token);
  }
  tokenizer.splitter_unnormalized = new Splitter(found.false.keys());
  tokenizer.splitter_normalized = new Splitter(found.true.keys());
  tokenizer.added_tokens_map = new Map([...found.true, ...found.false]);
}

function mendDecoder(step) {
  if (step instanceof ByteLevelDecoder) step.decode_chain = (tokens) => [utf8(tokens.flatMap(bytesOf))];
  if (step instanceof ByteFallbackDecoder) step.decode_chain = decodeBytes;
  if (step instanceof MetaspaceDecoder) {
    const { replacement, prepend_scheme: scheme } = step.config;
    step.decode_chain = (tokens) =>
      tokens.map((token, i) => token.replaceAll(replacement, i === 0 && scheme !== "never" ? "" : " "));
  }
}

/** The text of bytes, also of a byte order mark. */
function utf8(bytes, fatal = false) {
  return new TextDecoder("utf-8", { fatal, ignoreBOM: true }).decode(Uint8Array.from(bytes));
}

/** The bytes that a token's letters stand for; a token with other letters is plain text. */
function bytesOf(token) {
  const bytes = [...token].map((letter) => BYTES.get(letter));
  return bytes.includes(undefined) ? [...UTF8.encode(token)] : bytes;
}

/** Tokens such as <0x41> become text, run by run. Each byte of a run that is not UTF-8 becomes U+FFFD. */
function decodeBytes(tokens) {
  const out = [];
  let run = [];
  const flush = () => {
    if (!run.length) return;
    try {
      out.push(utf8(run, true));
    } catch {
      out.push(...run.map(() => "\ufffd"));
    }
    run = [];
  };
  for (const token of tokens) {
    const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(token);
    if (byte) {
      run.push(parseInt(byte[1], 16));
    } else {
      flush();
      out.push(token);
    }
  }
  flush();
  return out;
}

/**
 * Encodes text with special tokens at some places, and with their texts as ordinary text elsewhere.
 *
 * Special tokens are text for a copy of the tokenizer. In the text, stand-ins replace those that are meant: tokens of
 * the copy alone, with the same rules. So all other text has the ids that it has beside special tokens.
 */
export class Shield {
  /** @param {Tokenizer} tokenizer See `openTokenizer`. The copy shares its vocabulary. */
  constructor(tokenizer) {
    this.copy = Object.create(tokenizer);
    const special = tokenizer.added_tokens.filter((token) => token.special);
    this.ordinary = tokenizer.added_tokens.filter((token) => !token.special);
    this.special = new Map(special.map((token) => [token.content, token]));
    const unknown = new Set(this.copy.model(["\u{10fffe}"])); // a special token that stands for ordinary text
    this.reserved = new Map(special.filter((t) => !unknown.has(t.content)).map((t) => [t.id, t.content]));
  }

  /**
   * @param {string} text
   * @param {{index: number, content: string}[]} places Each special token that is meant, in order.
   * @returns {number[]}
   */
  encode(text, places) {
    if (text.includes(NONCHARACTER)) {
      const what = "The conversation contains the noncharacter U+FDD0 beside a special token's text.";
      throw new LLMError("bad-argument", what, "It has no meaning in text.", "Remove it.");
    }
    const standIns = places.map((_, n) => standIn(n));
    const rules = places.map(({ content }) => this.special.get(content));
    setAdded(this.copy, [...this.ordinary, ...rules.map((rule, n) => ({ ...rule, content: standIns[n] }))]);
    let out = "";
    let at = 0;
    places.forEach(({ index, content }, n) => {
      out += text.slice(at, index) + standIns[n];
      at = index + content.length;
    });
    const { ids, tokens } = this.copy.encode(out + text.slice(at), { add_special_tokens: false });
    const found = new Set(tokens.map((token) => token.slice(token.indexOf(NONCHARACTER)))); // a normalizer adds to them
    // Some tokens are not found beside other text, whoever wrote them: then they are text.
    const kept = places.filter((_, n) => found.has(standIns[n]));
    if (kept.length < places.length) return this.encode(text, kept);
    const isMeant = (i) => tokens[i].includes(NONCHARACTER);
    return ids.flatMap((id, i) => (this.reserved.has(id) && !isMeant(i) ? this.letters(id) : [id]));
  }

  /** Some vocabularies hold the text of special tokens, and can make them from plain text. Then it is taken apart. */
  letters(id) {
    const content = this.reserved.get(id);
    const ids = [...content].flatMap((letter) => this.copy.model([letter])).map((t) => this.copy.token_to_id(t));
    if (ids.some((part) => this.reserved.has(part))) {
      const what = `The text ${JSON.stringify(content)} cannot be encoded without a special token.`;
      throw new LLMError("bad-argument", what, "It is a single character of the vocabulary.", "Remove it.");
    }
    return ids;
  }
}

function standIn(n) {
  const digits = [Math.floor(n / PRIVATE_SIZE), n % PRIVATE_SIZE].map((digit) => String.fromCharCode(PRIVATE + digit));
  return NONCHARACTER + digits.join("");
}
