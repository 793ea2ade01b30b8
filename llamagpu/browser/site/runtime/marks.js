/**
 * Marks on the text that comes from the conversation, so that it can be told from the template's own text
 * (llamagpu/text/marks.py, whose description holds here).
 *
 * Twins are in Unicode's private-use area U+E000 to U+F8FF, because a string has one unit for each of those.
 */
const PRIVATE = 0xe000;
const UNMARKED = /[\s\x00-\x1f"'\\<>&\ud800-\udfff]/;

/** A regular expression for any of some texts, the longest first. */
export function anyOf(texts) {
  const longest = [...texts].filter(Boolean).sort((a, b) => b.length - a.length);
  return longest.map((text) => text.replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&")).join("|") || "(?!)";
}

export class Marks {
  /**
   * @param {string[]} special The texts of special tokens.
   * @param {string[]} named Strings that the template names. A string of the conversation that is one of them stays
   *   unmarked. So does one inside a longer text, unless special tokens have it as a part.
   */
  constructor(special, named) {
    this.special = special.filter(Boolean).sort((a, b) => b.length - a.length);
    this.characters = new Set(this.special.join("").split("").filter((c) => !UNMARKED.test(c)));
    this.named = new Set(named.filter((name) => !this.special.some((s) => name.includes(s))));
    const marked = (name) => name.split("").some((c) => this.characters.has(c));
    const within = [...this.named].filter((n) => marked(n) && !this.special.some((s) => s.includes(n)));
    this.pieces = new RegExp(`${anyOf(this.special)}|(${anyOf(within)})`, "g");
  }

  /**
   * The text that `render` makes of messages, and the same with twins in place of the conversation's own characters.
   *
   * If the marks change the text, special tokens that the conversation can have added count as the conversation's.
   * @param {(messages: object[]) => string} render
   * @param {object[]} messages Objects of strings.
   * @returns {{text: string, marked: string}} Of equal lengths.
   */
  render(render, messages) {
    const text = render(messages);
    const twins = this.twins(text + JSON.stringify(messages));
    let marked;
    try {
      marked = render(messages.map((m) => map(m, (value) => this.mark(value, twins))));
    } catch {
      const given = messages.flatMap((message) => Object.values(message));
      return { text, marked: this.suspect(text, twins, (s) => given.some((value) => value.includes(s))) };
    }
    const back = new Map([...twins].map(([character, twin]) => [twin, character]));
    if (translated(marked, back) === text) return { text, marked };
    const count = (where, s) => where.split(s).length;
    return { text, marked: this.suspect(text, twins, (s) => count(text, s) > count(marked, s)) };
  }

  /** A twin for each character, of those that a text does not have. */
  twins(text) {
    let next = PRIVATE;
    const unused = () => {
      while (text.includes(String.fromCharCode(next))) next += 1;
      return String.fromCharCode(next++);
    };
    return new Map([...this.characters].map((character) => [character, unused()]));
  }

  suspect(text, twins, isSuspect) {
    for (const s of this.special) {
      if (text.includes(s) && isSuspect(s)) text = text.replaceAll(s, () => translated(s, twins));
    }
    return text;
  }

  mark(text, twins) {
    if (this.named.has(text)) return text;
    let out = "";
    let at = 0;
    for (const match of text.matchAll(this.pieces)) {
      if (match[1] === undefined) continue; // a special token is marked as a whole
      out += translated(text.slice(at, match.index), twins) + match[1];
      at = match.index + match[1].length;
    }
    return out + translated(text.slice(at), twins);
  }
}

function translated(text, table) {
  return Array.from({ length: text.length }, (_, i) => table.get(text[i]) ?? text[i]).join("");
}

function map(object, change) {
  return Object.fromEntries(Object.entries(object).map(([key, value]) => [key, change(value)]));
}
