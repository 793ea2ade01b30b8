// A conversation in turns.

import { announce, button, copyButton, element, fitHeight } from "./elements.js";
import { MarkdownView, markdown } from "./markdown.js";

/**
 * @typedef {object} Actions what the reader can do with a message
 * @property {() => void} answer answers the last message
 * @property {() => void} regenerate
 * @property {(index: number, text: string) => void} resend
 * @property {(index: number) => void} remove a question with its answer, or the last answer
 */

export class ChatView {
  /** @param {HTMLElement} parent @param {Actions} actions */
  constructor(parent, actions) {
    this.parent = parent;
    this.actions = actions;
  }

  /**
   * @param {import("./conversations.js").Conversation} conversation
   * @param {object} [growing] the unfinished message
   */
  show(conversation, growing) {
    this.messages = conversation.messages;
    this.growing = null;
    this.list = element("ol", { class: "messages", "aria-label": "Messages" });
    this.parent.replaceChildren(this.list);
    this.messages.forEach((message, index) => this.add(message, index, message === growing));
  }

  add(message, index, grows) {
    const author = message.role === "user" ? "You" : "Model";
    const item = element("li", { class: message.role }, element("h3", { class: "hidden", text: author }));
    this.list.append(item);
    if (grows) this.addGrowing(item, message);
    else {
      const body = message.role === "user" ? plain(message.content) : markdown(message.content);
      item.append(body, ...ending(message), this.tools(item, message, index));
    }
  }

  addGrowing(item, message) {
    const body = element("div", { class: "markdown growing", "aria-busy": "true" });
    item.append(body);
    this.growing = { message, view: new MarkdownView(body) };
    this.grow();
  }

  /** The unfinished message has more text. */
  grow() {
    if (this.growing) this.growing.view.update(this.growing.message.content);
  }

  /** What a screen reader hears of the last answer, when it is finished. */
  spoken() {
    return this.list.lastElementChild.querySelector(".markdown").innerText;
  }

  tools(item, message, index) {
    const last = index === this.messages.length - 1;
    const mine = message.role === "user";
    const what = mine ? "your message" : "the answer";
    const quiet = (text, action, label) => button(text, action, { class: "quiet", "aria-label": label });
    const asking = (text, action, label) => button(text, action, { class: "quiet asking", "aria-label": label });
    const made = [copyButton(() => message.content, `Copy ${what}`)];
    if (mine) made.push(asking("Edit", () => this.edit(item, message, index), "Edit your message"));
    if (mine && last) made.push(asking("Answer", this.actions.answer, "Answer this message"));
    if (!mine && last) made.push(asking("Regenerate", this.actions.regenerate, "Regenerate the answer"));
    if (mine || last) made.push(quiet("Delete", () => this.actions.remove(index), `Delete ${what}`));
    return element("div", { class: "tools" }, ...made);
  }

  edit(item, message, index) {
    const old = [...item.childNodes];
    const cancel = () => item.replaceChildren(...old);
    const send = (text) => this.actions.resend(index, text);
    item.replaceChildren(editor(message.content, { label: "Your message", verb: "Send", send, cancel }));
    item.querySelector("textarea").focus();
  }
}

/** A text field with its two buttons. Enter sends, Esc gives up. */
export function editor(text, { label, verb, send, cancel, entersLines = false }) {
  const area = element("textarea", { "aria-label": label, dir: "auto", rows: 1 });
  const accept = () => area.value.trim() && send(area.value);
  area.value = text;
  area.addEventListener("input", () => fitHeight(area));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation(); // Esc would stop an answer
      cancel();
      announce("Nothing was changed.");
    } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !entersLines) {
      event.preventDefault();
      accept();
    }
  });
  requestAnimationFrame(() => fitHeight(area)); // it has no height before it is in the document
  const buttons = [button(verb, accept, { class: "primary" }), button("Cancel", cancel)];
  return element("div", { class: "editor" }, area, element("div", { class: "buttons" }, ...buttons));
}

function plain(text) {
  return element("div", { class: "plain", dir: "auto", text });
}

/** Why the answer ended, if not by itself, and its figures. */
export function ending({ ending: why, figures }) {
  const made = [];
  if (why) made.push(element("p", { class: "ending", text: why }));
  if (figures) made.push(element("p", { class: "figures", text: figures }));
  return made;
}
