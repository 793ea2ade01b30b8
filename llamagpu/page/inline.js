// Markdown within a line: emphasis, code, links. Builds nodes in one pass; each step looks at a bounded piece of text,
// so no text from a model makes it slow.

import { element } from "./elements.js";

const LABEL = String.raw`(!?)\[((?:\\.|[^[\]\\]){0,500})\]`;
const TARGET = String.raw`\(\s*<?((?:[^\s<>()]|\([^\s<>()]{0,500}\)){0,2000})>?(?:\s+"[^"]{0,300}")?\s*\)`;
const LINK = new RegExp(LABEL + TARGET, "y");
const ANGLE_LINK = /<(https?:\/\/[^\s<>]{1,2000})>/iy;
const BARE_LINK = /https?:\/\/[^\s<>"`|]{1,2000}/iy;
const ENTITY = /&(?:#(\d{1,7})|#x([\da-f]{1,6})|(amp|lt|gt|quot|apos|nbsp));/iy;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const PUNCTUATION = /[\p{P}\p{S}]/u;
const SPACE = /\s/;
const SPECIAL = /[\\`*_~[!<&hH\n]/g;
const DEEPEST = 24; // open emphasis; more is text

/** @param {string} text @param {number} [depth] of links in links @returns {DocumentFragment} */
export function inline(text, depth = 0) {
  return new InlineParser(text, depth).parse();
}

class InlineParser {
  constructor(text, depth) {
    this.text = text;
    this.depth = depth;
    this.at = 0;
    this.literal = "";
    this.stack = [{ nodes: document.createDocumentFragment() }]; // open emphasis above the result
    this.unclosed = new Set(); // lengths of backtick runs that have no partner further on
  }

  parse() {
    while (this.at < this.text.length) {
      SPECIAL.lastIndex = this.at;
      const next = SPECIAL.exec(this.text)?.index ?? this.text.length;
      this.literal += this.text.slice(this.at, next);
      this.at = next;
      if (next < this.text.length && !this.special(this.text[next])) this.literal += this.text[this.at++];
    }
    while (this.stack.length > 1) this.abandon();
    this.flush();
    return this.stack[0].nodes;
  }

  /** Reads what begins with a special character. @returns {boolean} false if it is text after all */
  special(char) {
    if (char === "\\") return this.escape();
    if (char === "`") return this.code();
    if (char === "\n") return this.lineBreak();
    if (char === "&") return this.entity();
    if (char === "*" || char === "_" || char === "~") return this.emphasis(char);
    if (this.depth) return false; // no link in a link
    if (char === "[" || char === "!") return this.link();
    return this.address(char);
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  flush() {
    if (this.literal) this.top().append(this.literal);
    this.literal = "";
  }

  top() {
    return this.stack[this.stack.length - 1].nodes;
  }

  put(node, length) {
    this.flush();
    this.top().append(node);
    this.at += length;
    return true;
  }

  escape() {
    const next = this.text[this.at + 1];
    if (!next || !/[!-/:-@[-`{-~]/.test(next)) return false;
    this.literal += next;
    this.at += 2;
    return true;
  }

  // Chat models break lines where they mean it (poems, addresses), so every line break is kept.
  lineBreak() {
    this.literal = this.literal.replace(/ {1,20}$/, "");
    return this.put(element("br"), 1);
  }

  entity() {
    const found = this.match(ENTITY);
    if (!found) return false;
    const code = found[1] ? Number(found[1]) : parseInt(found[2], 16);
    if (!found[3] && !(code > 31 && code < 0x110000)) return false;
    this.literal += found[3] ? ENTITIES[found[3].toLowerCase()] : String.fromCodePoint(code);
    this.at += found[0].length;
    return true;
  }

  code() {
    const length = runLength(this.text, this.at);
    const end = this.unclosed.has(length) ? -1 : this.closingTicks(length);
    if (end < 0) {
      this.unclosed.add(length);
      this.literal += "`".repeat(length);
      this.at += length;
      return true;
    }
    const content = this.text.slice(this.at + length, end).replaceAll("\n", " ");
    const padded = content.length > 2 && content.startsWith(" ") && content.endsWith(" ");
    return this.put(element("code", { text: padded ? content.slice(1, -1) : content }), end + length - this.at);
  }

  closingTicks(length) {
    let at = this.text.indexOf("`", this.at + length);
    while (at >= 0) {
      const found = runLength(this.text, at);
      if (found === length) return at;
      at = this.text.indexOf("`", at + found);
    }
    return -1;
  }

  // An image becomes a link as well: the page asks no other host for anything.
  link() {
    const found = this.match(LINK);
    if (!found) return false;
    const [all, mark, label, address] = found;
    const url = safeUrl(address.replaceAll("&amp;", "&"));
    const content = inline(label || address, this.depth + 1);
    if (mark) content.prepend("Image: ");
    if (url) return this.put(anchor(url, content), all.length);
    content.append(` (${address})`);
    return this.put(content, all.length);
  }

  address(char) {
    const angle = char === "<" && this.match(ANGLE_LINK);
    if (angle) return this.putAddress(angle[1], angle[0].length);
    const bare = char !== "<" && !/\w/.test(this.text[this.at - 1] ?? "") && this.match(BARE_LINK);
    if (!bare) return false;
    let address = bare[0].replace(/[.,:;!?'*_~]{1,50}$/, "");
    if (address.endsWith(")") && !address.includes("(")) address = address.slice(0, -1);
    return this.putAddress(address, address.length);
  }

  putAddress(address, length) {
    const url = safeUrl(address);
    return url ? this.put(anchor(url, address), length) : false;
  }

  emphasis(char) {
    const length = runLength(this.text, this.at);
    const { opens, closes } = flanking(this.text, this.at, length, char);
    this.at += length;
    let left = length;
    if (char === "~" && length !== 2) this.literal += "~".repeat(length);
    else {
      while (left && closes && this.close(char, left)) left -= this.closed;
      if (left && opens && left <= 3 && this.stack.length < DEEPEST) this.open(char, left);
      else this.literal += char.repeat(left);
    }
    return true;
  }

  open(char, length) {
    this.flush();
    for (const part of length === 3 ? [2, 1] : [length]) {
      this.stack.push({ char, length: part, nodes: document.createDocumentFragment() });
    }
  }

  /** Closes the nearest fitting emphasis; `closed` is the number of characters that this took. */
  close(char, length) {
    const fits = (wanted) => this.stack.findLastIndex((open) => open.char === char && wanted(open.length));
    let index = fits((own) => own === length);
    if (index < 0) index = fits((own) => own < length);
    if (index < 0) return false;
    while (this.stack.length - 1 > index) this.abandon();
    this.flush();
    const open = this.stack.pop();
    const tag = char === "~" ? "del" : open.length === 2 ? "strong" : "em";
    this.top().append(element(tag, {}, open.nodes));
    this.closed = open.length;
    return true;
  }

  abandon() {
    this.flush();
    const open = this.stack.pop();
    this.top().append(open.char.repeat(open.length), open.nodes);
  }
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end++;
  return end - at;
}

/** CommonMark's rule for what may open and close emphasis. */
function flanking(text, at, length, char) {
  const before = text[at - 1] ?? " ";
  const after = text[at + length] ?? " ";
  const left = !SPACE.test(after) && (!PUNCTUATION.test(after) || SPACE.test(before) || PUNCTUATION.test(before));
  const right = !SPACE.test(before) && (!PUNCTUATION.test(before) || SPACE.test(after) || PUNCTUATION.test(after));
  if (char !== "_") return { opens: left, closes: right };
  return { opens: left && (!right || PUNCTUATION.test(before)), closes: right && (!left || PUNCTUATION.test(after)) };
}

/** The address if it is absolute http or https, else null. */
function safeUrl(address) {
  if (!/^https?:\/\//i.test(address) || !URL.canParse(address)) return null;
  return new URL(address).href;
}

function anchor(url, content) {
  return element("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, content);
}
