// The open conversation and the running answer: what is said to the model, kept and shown.

import { announce, byId, count } from "./elements.js";
import { ChatView } from "./chat.js";
import { giveTitle, newConversation } from "./conversations.js";
import { errorCard, notice, removeNotice } from "./notices.js";
import { StoryView, addWords, wholeText } from "./story.js";

const GONE = new Set(["device-lost", "closed"]); // errors after which this model answers no more
const SAVE_EVERY = 3000; // milliseconds, while an answer grows

export class Session {
  /**
   * @param {import("./conversations.js").Conversations} store
   * @param {import("./settings.js").Settings} settings
   * @param {import("./scrolling.js").Scrolling} scrolling
   * @param {() => void} onChange after the conversation, its title or the running answer changed
   * @param {() => void} onReload to load the model again, when it cannot answer any more
   */
  constructor(store, settings, scrolling, onChange, onReload) {
    Object.assign(this, { store, settings, scrolling, onChange, onReload });
    const actions = {
      answer: () => this.answer(),
      regenerate: () => this.regenerate(),
      resend: (index, text) => this.resend(index, text),
      remove: (index) => this.remove(index),
      rewrite: (text) => this.rewrite(text),
    };
    const parent = byId("conversation");
    this.views = { chat: new ChatView(parent, actions), text: new StoryView(parent, actions) };
    this.llm = null;
    this.running = null; // {conversation, message, stream, done}
    this.current = newConversation("chat", settings.system);
  }

  get view() {
    return this.views[this.current.mode];
  }

  /** Whether the open conversation is the one that grows. */
  get growing() {
    return this.running?.conversation === this.current;
  }

  create(mode) {
    this.current = newConversation(mode, this.settings.system);
    this.show();
  }

  /** @returns {Promise<boolean>} false if it no longer exists */
  async open(id) {
    const found = this.running?.conversation.id === id ? this.running.conversation : await this.store.get(id);
    if (found) this.current = found;
    this.show();
    return Boolean(found);
  }

  show() {
    byId("failure").replaceChildren();
    this.render();
    this.onChange();
    this.scrolling.toEnd();
  }

  /** The keyboard's place does not get lost with the elements that are replaced. */
  render() {
    const parent = byId("conversation");
    const focused = parent.contains(document.activeElement);
    this.view.show(this.current, this.growing ? this.running.message : null);
    if (focused && !parent.contains(document.activeElement)) byId("scroll").focus({ preventScroll: true });
  }

  /** @param {string} text of the reader; empty continues a text as it is. @returns {boolean} whether it was sent */
  send(text) {
    const sent = this.put(text);
    if (sent) removeNotice("undo"); // it would take back what is new as well
    return sent;
  }

  put(text) {
    const { mode, messages } = this.current;
    if (!this.llm || this.running || (!text.trim() && (mode === "chat" || !messages.length))) return false;
    if (mode === "chat") messages.push({ role: "user", content: text.trim() });
    else if (text) addWords(this.current, text);
    this.answer();
    return true;
  }

  stop() {
    this.running?.stream?.cancel();
  }

  regenerate() {
    if (!this.llm || this.running) return;
    this.undoable("The earlier answer was replaced.", (messages) => messages.pop());
    this.answer();
  }

  resend(index, text) {
    if (!this.llm || this.running) return;
    this.undoable("The message and what followed it were replaced.", (messages) => messages.splice(index));
    this.put(text);
  }

  rewrite(text) {
    this.undoable("The text was changed.", (parts) => parts.splice(0, parts.length, { role: "user", content: text }));
    this.show();
    this.save(this.current);
  }

  /** A question goes with its answer: templates want turns. */
  remove(index) {
    if (this.running) return;
    const both = this.current.mode === "chat" && this.current.messages[index].role === "user";
    this.undoable("Deleted.", (messages) => messages.splice(index, both ? 2 : 1));
    this.show();
    this.save(this.current);
    byId("prompt").focus();
  }

  /** Changes the messages, and offers to take the change back. */
  undoable(text, change) {
    const conversation = this.current;
    const before = structuredClone(conversation.messages);
    change(conversation.messages);
    const onAction = async () => {
      this.stop();
      await this.running?.done;
      conversation.messages = before;
      if (this.current.id === conversation.id) this.current = conversation;
      this.show();
      this.save(conversation);
    };
    notice(text, { kind: "undo", action: "Undo", onAction });
  }

  answer() {
    if (!this.llm || this.running) return;
    const conversation = this.current;
    const message = { role: "assistant", content: "" };
    const input = conversation.mode === "chat" ? turns(conversation) : wholeText(conversation);
    conversation.messages.push(message);
    giveTitle(conversation);
    this.running = { conversation, message, stream: null, saved: performance.now() };
    this.running.done = this.run(input);
    this.save(conversation);
    this.show();
  }

  async run(input) {
    const { conversation, message } = this.running;
    let failure = null;
    try {
      await null; // what follows may throw at once, and the answer must be shown first
      const { llm, settings: { options } } = this;
      const stream = conversation.mode === "chat" ? llm.chatStream(input, options) : llm.stream(input, options);
      this.running.stream = stream;
      stream.result.catch(() => {}); // the loop below throws the same error
      for await (const piece of stream) this.grown(piece);
      describe(message, await stream.result, llm.info, options);
    } catch (error) {
      failure = error;
      if (message.content) message.ending = "An error ended this answer.";
    }
    if (!message.content && failure) conversation.messages.splice(conversation.messages.indexOf(message), 1);
    this.finish(conversation, message, failure);
  }

  grown(piece) {
    const { running } = this;
    running.message.content += piece;
    if (!running.frame) running.frame = requestAnimationFrame(() => this.draw(running));
    if (performance.now() - running.saved < SAVE_EVERY) return;
    running.saved = performance.now();
    this.save(running.conversation);
  }

  draw(running) {
    running.frame = 0;
    if (this.running !== running || !this.growing) return;
    this.view.grow();
    this.scrolling.grown();
  }

  finish(conversation, message, failure) {
    const here = this.growing;
    cancelAnimationFrame(this.running.frame);
    this.running = null;
    this.save(conversation);
    if (!here) return this.onChange();
    const { follows } = this.scrolling;
    this.render();
    this.onChange();
    if (failure) this.showFailure(failure);
    else announce(`${message.ending ?? "The answer is finished."} ${message.content && this.view.spoken()}`);
    if (follows) this.scrolling.toEnd();
  }

  showFailure(error) {
    const again = GONE.has(error?.code)
      ? { label: "Load the model again", onRetry: this.onReload }
      : { onRetry: () => this.retry() };
    byId("failure").replaceChildren(errorCard(error, again));
  }

  /** After an error: a partial answer makes room for the next try. */
  retry() {
    if (this.running) return;
    const { mode, messages } = this.current;
    if (mode === "chat" && messages.at(-1)?.role === "assistant") messages.pop();
    this.answer();
  }

  async save(conversation) {
    try {
      const copied = await this.store.save(conversation);
      if (copied) {
        notice("Another tab changed this conversation. This one goes on as a copy.", { kind: "copy" });
      }
    } catch (error) {
      const text = "This conversation was not saved: the browser gave no room for it. Export it, or delete others.";
      notice(`${text} (${error?.name ?? error})`, { kind: "storage" });
    }
    this.onChange();
  }
}

/** @returns {{role: string, content: string}[]} */
function turns({ system, messages }) {
  const said = messages.map(({ role, content }) => ({ role, content }));
  return system.trim() ? [{ role: "system", content: system }, ...said] : said;
}

/** Notes on a message why it ended, and its figures. */
function describe(message, result, info, options) {
  const { completionTokens: made, promptTokens: prompt, cachedTokens: cached, timings, seed } = result;
  if (result.contextFull) {
    message.ending = `The context of ${count(info.context)} tokens is full, so the text ends here. ` +
      "Delete earlier messages, or begin a new conversation.";
  } else if (result.finishReason === "length") {
    message.ending = `This is the longest answer that the settings allow: ${count(options.maxTokens)} tokens.`;
  } else if (result.finishReason === "cancelled") message.ending = "Stopped.";
  const figures = [`${count(made)} ${made === 1 ? "token" : "tokens"}`];
  // The first token belongs to the prompt's time.
  if (made > 1 && timings?.decodeSeconds) figures.push(`${((made - 1) / timings.decodeSeconds).toFixed(1)} tokens/s`);
  figures.push(`prompt ${count(prompt)}${cached ? `, ${count(cached)} cached` : ""}`);
  figures.push(`context ${count(prompt + made)}${info.context ? ` of ${count(info.context)}` : ""}`);
  if (options.temperature > 0 && seed != null) figures.push(`seed ${seed}`);
  message.figures = figures.join(" · ");
}
