/** Chat templates: conversations become prompts, as llamagpu/text/template.py renders them. */
import { Template } from "./libraries/jinja.js";
import { LLMError } from "./errors.js";
import { Marks } from "./marks.js";

const ROLES = ["system", "developer", "user", "assistant", "tool", "function", "ipython"];
const KEYS = ["role", "content", "name"];
const MONTHS = "January February March April May June July August September October November December".split(" ");
const DAYS = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split(" ");

export class Chat {
  /**
   * @param {{template: string, named: string[], attributes: string[]}} settings The template, the strings that it
   *   names, and the attributes that it reads.
   * @param {Object<string, string>} special The special tokens that it may name, such as bos_token.
   * @param {string[]} reserved The texts of all special tokens. Only the template may write them.
   * @throws What the library throws, if it cannot read the template.
   */
  constructor(settings, special, reserved) {
    this.template = new Template(settings.template);
    this.special = special;
    this.named = new Set(settings.named);
    this.marks = new Marks(reserved, [...settings.named, ...ROLES, ...settings.attributes]);
  }

  /**
   * @param {{role: string, content: string}[]} messages
   * @param {{addGenerationPrompt?: boolean, now?: Date}} options Whether to end where the answer begins; the clock.
   * @returns {{text: string, marked: string}} The prompt, with marks on the conversation's own text.
   */
  render(messages, { addGenerationPrompt = true, now = new Date() } = {}) {
    if (!Array.isArray(messages) || !messages.length) {
      throw new LLMError("bad-argument", "The conversation is empty.", "There is nothing to answer.");
    }
    const values = {
      ...this.special,
      tools: null,
      documents: null,
      add_generation_prompt: addGenerationPrompt,
      strftime_now: (format) => strftime(now, format),
    };
    const render = (given) => this.template.render({ ...values, messages: given });
    try {
      return this.marks.render(render, messages.map((m) => this.checked(m)));
    } catch (error) {
      if (error instanceof LLMError) throw error;
      throw new LLMError("bad-argument", "The chat template does not take this conversation.", String(error.message));
    }
  }

  checked(message) {
    const { role, content, name = "" } = message ?? {};
    if (![role, content, name].every(isText)) {
      const why = "A message has a role and a content, both text.";
      throw new LLMError("bad-argument", `${shown(message)} is not a message.`, why);
    }
    const other = Object.keys(message).find((key) => !KEYS.includes(key));
    if (other !== undefined) {
      const why = `A message has ${KEYS.join(", ")}; tools need Python.`;
      throw new LLMError("bad-argument", `The message has the key ${shown(other)}.`, why, "Remove it.");
    }
    if (!ROLES.includes(role) && !this.named.has(role)) {
      const why = `Roles are ${ROLES.join(", ")}, and those the template names.`;
      throw new LLMError("bad-argument", `Unknown role ${shown(role)}.`, why);
    }
    return role === "developer" && !this.named.has(role) ? { ...message, role: "system" } : { ...message };
  }
}

/** Whether a value is a string of whole Unicode characters. */
export function isText(value) {
  return typeof value === "string" && !/\p{Surrogate}/u.test(value);
}

/** A value in an error message, kept short. */
export function shown(value) {
  return (JSON.stringify(value) ?? String(value)).slice(0, 60);
}

/** Python's strftime with English names. The library's own takes the names from the browser's language. */
function strftime(date, format) {
  const two = (number) => String(number).padStart(2, "0");
  const [month, day, hour] = [MONTHS[date.getMonth()], DAYS[date.getDay()], date.getHours()];
  const values = {
    ...{ Y: String(date.getFullYear()), y: two(date.getFullYear() % 100) },
    ...{ m: two(date.getMonth() + 1), d: two(date.getDate()) },
    ...{ B: month, b: month.slice(0, 3), A: day, a: day.slice(0, 3), H: two(hour), I: two(hour % 12 || 12) },
    ...{ M: two(date.getMinutes()), S: two(date.getSeconds()), p: hour < 12 ? "AM" : "PM", "%": "%" },
  };
  return format.replace(/%(.?)/gs, (code, letter) => {
    if (!(letter in values)) throw new Error(`strftime_now has no ${code}`);
    return values[letter];
  });
}
