/** Chat templates: conversations become prompts, as llamagpu/text/template.py renders them. */
import { LLMError } from "./errors.js";
import { Marks } from "./marks.js";
import { compile, run } from "./template.js";

const ROLES = ["system", "developer", "user", "assistant", "tool", "function", "ipython"];
const KEYS = ["role", "content", "name"];

export class Chat {
  /**
   * @param {{template: string, named: string[], attributes: string[]}} settings The template, the strings that it
   *   names, and the attributes that it reads.
   * @param {Object<string, string>} special The special tokens that it may name, such as bos_token.
   * @param {string[]} reserved The texts of all special tokens. Only the template may write them.
   * @throws What the library throws, if it cannot read the template.
   */
  constructor(settings, special, reserved) {
    this.program = compile(settings.template);
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
    };
    const render = (given) => run(this.program, { ...values, messages: given }, now);
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
