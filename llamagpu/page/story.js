// A text that the reader and the model write in turns: models without a chat template continue texts.

import { button, copyButton, element } from "./elements.js";
import { editor, ending } from "./chat.js";

/** The whole text of a conversation in text mode. */
export const wholeText = (conversation) => conversation.messages.map((part) => part.content).join("");

/** Adds a reader's words to a text. A word needs a space before it, unless the text has one. */
export function addWords(conversation, words) {
  const text = wholeText(conversation);
  const apart = !text || /\s$/.test(text) || /^[\s.,;:!?)'’”]/.test(words);
  conversation.messages.push({ role: "user", content: apart ? words : ` ${words}` });
}

export class StoryView {
  /** @param {HTMLElement} parent @param {{regenerate: Function, remove: Function, rewrite: Function}} actions */
  constructor(parent, actions) {
    this.parent = parent;
    this.actions = actions;
  }

  show(conversation, growing) {
    const parts = conversation.messages;
    this.conversation = conversation;
    this.growing = null;
    this.parent.replaceChildren();
    if (!parts.length) return;
    const text = element("div", { class: "story", dir: "auto" });
    for (const part of parts) text.append(this.part(part, part === growing));
    this.parent.append(text);
    if (!this.growing) this.parent.append(...ending(parts.at(-1)), this.tools(text));
  }

  part(part, grows) {
    const content = document.createTextNode(part.content);
    if (grows) this.growing = { message: part, content };
    if (part.role === "user") return element("mark", {}, content);
    return element("span", { class: grows ? "growing" : "" }, content);
  }

  grow() {
    if (!this.growing) return;
    const { message, content } = this.growing;
    content.appendData(message.content.slice(content.length));
  }

  spoken() {
    return this.conversation.messages.at(-1).content;
  }

  tools(text) {
    const parts = this.conversation.messages;
    const quiet = (name, action, label) => button(name, action, { class: "quiet", "aria-label": label });
    const made = [
      copyButton(() => wholeText(this.conversation), "Copy the text"),
      quiet("Edit", () => this.edit(text), "Edit the text"),
    ];
    if (parts.at(-1).role === "assistant") {
      const asking = { class: "quiet asking", "aria-label": "Regenerate the last part" };
      made.push(button("Regenerate", this.actions.regenerate, asking));
    }
    made.push(quiet("Remove last part", () => this.actions.remove(parts.length - 1), "Remove the last part"));
    return element("div", { class: "tools" }, ...made);
  }

  edit(text) {
    const old = [...this.parent.childNodes];
    const cancel = () => this.parent.replaceChildren(...old);
    const options = { label: "The text", verb: "Save", send: this.actions.rewrite, cancel, entersLines: true };
    this.parent.replaceChildren(editor(wholeText(this.conversation), options));
    this.parent.querySelector("textarea").focus();
  }
}
