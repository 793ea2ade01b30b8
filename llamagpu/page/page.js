// The page: reads page.json, loads the model through llamagpu.js, and connects its parts.

import { byId, bytes, button, element, fitHeight } from "./elements.js";
import { Conversations } from "./conversations.js";
import { Loading } from "./loading.js";
import { errorCard, notice } from "./notices.js";
import { Scrolling } from "./scrolling.js";
import { Session } from "./session.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";

const BEGINNINGS = {
  chat: ["Why is the sky blue?", "Write a haiku about rain.", "Explain recursion to a child."],
  text: ["Once upon a time", "The little dragon", "It was a cold morning, and"],
};
const GREETINGS = { chat: "What shall we talk about?", text: "How does it begin?" };
const HINTS = {
  chat: { label: "Message", empty: "Write a message", more: "Write a message" },
  text: { label: "Text", empty: "Write the first words", more: "Add words, or send nothing to go on" },
};
const FOLDER = new URL(".", location.href).pathname; // sites beside each other on one host keep their own things
const KEY = `llamagpu:${FOLDER}`;

/** A value of this browser that may be lost without harm. */
function small(storage, name) {
  const key = `${KEY}:${name}`;
  return {
    get: () => {
      try {
        return globalThis[storage].getItem(key);
      } catch {
        return null;
      }
    },
    set: (value) => {
      try {
        globalThis[storage].setItem(key, value);
      } catch {
        // The next visit begins afresh.
      }
    },
  };
}

const openId = small("sessionStorage", "open"); // of this tab: a reload opens it again

/** @returns {Promise<{title: string, downloadBytes?: number, local: boolean}>} */
async function configuration() {
  try {
    const answer = await fetch("page.json");
    if (!answer.ok) throw new Error(`The server answered with HTTP ${answer.status}.`);
    return { title: "llamagpu", local: true, ...(await answer.json()) };
  } catch (error) {
    throw fileError("page.json", error);
  }
}

/** A file of the page itself is missing or unreachable. */
function fileError(name, error) {
  return {
    what: `The page could not read its file ${name}.`,
    why: error.message,
    advice: "Check the connection and reload the page. If you host it, check that all its files are there.",
    code: "page",
  };
}

class Page {
  async start() {
    const config = await configuration();
    this.setTitle(config.title);
    this.scrolling = new Scrolling();
    this.settings = new Settings(`${KEY}:settings`, () => this.settingsSaved());
    this.store = await Conversations.open(KEY, (id) => this.changedElsewhere(id));
    this.session = new Session(this.store, this.settings, this.scrolling, () => this.changed(), () => this.reload());
    this.sidebar = new Sidebar(this.session, this.store);
    this.connect();
    await this.session.open(openId.get() ?? "");
    const remembered = small("localStorage", "load-at-once");
    const atOnce = { get: () => remembered.get() === "yes", set: (on) => remembered.set(on ? "yes" : "no") };
    this.loading = new Loading(config, atOnce, load, (llm) => this.loaded(llm));
  }

  setTitle(title) {
    this.title = title;
    byId("title").textContent = title;
    document.title = title;
  }

  connect() {
    const prompt = byId("prompt");
    prompt.addEventListener("input", () => fitHeight(prompt));
    prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("open-settings").addEventListener("click", () => this.settings.open(this.session.current));
    byId("mode").addEventListener("change", (event) => this.setMode(event.target.value));
    document.addEventListener("keydown", (event) => this.escape(event));
  }

  escape(event) {
    if (event.key !== "Escape" || this.settings.dialog.open) return;
    if (this.sidebar.isOpen) this.sidebar.setOpen(false);
    else this.stop();
  }

  stop() {
    this.session.stop();
    if (this.session.llm) byId("prompt").focus();
  }

  send() {
    const prompt = byId("prompt");
    if (!this.session.send(prompt.value)) return;
    prompt.value = "";
    fitHeight(prompt);
  }

  loaded(llm) {
    const { info } = llm;
    this.session.llm = llm;
    this.settings.describe(info);
    this.setTitle(info.title ?? info.name ?? this.title);
    byId("model-line").textContent = modelLine(info);
    this.showModel(true);
    byId("mode").hidden = !info.hasChat;
    if (!this.session.current.messages.length) this.session.current.mode = info.hasChat ? "chat" : "text";
    this.session.show();
    fitHeight(byId("prompt"));
  }

  reload() {
    this.session.llm?.close();
    this.session.llm = null;
    this.showModel(false);
    this.session.show();
    this.loading.again();
  }

  showModel(ready) {
    for (const id of ["composer", "keys"]) byId(id).hidden = !ready;
    byId("open-settings").disabled = !ready;
  }

  /** A conversation keeps its mode once it has text; then the switch begins another one. */
  setMode(mode) {
    const { current } = this.session;
    if (current.messages.length) this.session.create(mode);
    else {
      current.mode = mode;
      this.session.show();
    }
  }

  changed() {
    const { current, running, growing } = this.session;
    const { label, empty, more } = HINTS[current.mode];
    byId("prompt-label").textContent = label;
    byId("prompt").placeholder = current.messages.length ? more : empty;
    byId("send").hidden = Boolean(running);
    byId("stop").hidden = !running;
    byId("stop").setAttribute("aria-label", running && !growing ? `Stop “${running.conversation.title}”` : "Stop");
    byId("conversation-title").textContent = current.title;
    byId("conversation").classList.toggle("busy", Boolean(running)); // hides what would disturb a running answer
    byId("conversation").classList.toggle("unloaded", !this.session.llm); // hides what needs a model
    for (const input of byId("mode").querySelectorAll("input")) input.checked = input.value === current.mode;
    openId.set(current.id);
    this.showEmpty();
    this.sidebar?.refresh();
  }

  showEmpty() {
    const { current, llm } = this.session;
    const none = !current.messages.length;
    document.body.classList.toggle("blank", none);
    byId("empty").hidden = !(none && llm);
    if (!none || !llm) return;
    const begin = (text) => button(text, () => (byId("prompt").focus(), this.session.send(text)));
    byId("empty").replaceChildren(
      element("p", { class: "greeting", text: GREETINGS[current.mode] }),
      element("div", { class: "beginnings" }, ...BEGINNINGS[current.mode].map(begin)),
    );
  }

  settingsSaved() {
    const { current } = this.session;
    if (!this.settings.kept) notice("The settings hold until you close the page: the browser gave no storage.");
    if (current.messages.length) this.session.save(current);
  }

  /** Another tab saved or deleted a conversation. The open one is read again, unless it is in use here. */
  changedElsewhere(id) {
    const { current, running } = this.session;
    const editing = byId("conversation").querySelector("textarea");
    if (id === current.id && !running && !editing) this.session.open(id);
    else this.sidebar.refresh();
  }
}

/** "in float16 on NVIDIA …, 270 MB" */
function modelLine({ dtype, adapter, memory }) {
  const parts = [dtype && `in ${dtype}`, adapter?.name && `on ${adapter.name}${adapter.software ? " (software)" : ""}`];
  return parts.filter(Boolean).join(" ") + (memory?.total ? `, ${bytes(memory.total)}` : "");
}

/** Imported here, so that a missing module gives an error on the page and not an empty page. */
async function load(options) {
  const module = await import("./llamagpu.js").catch((error) => {
    throw fileError("llamagpu.js", error);
  });
  return module.load(".", options);
}

new Page().start().catch((error) => byId("start").replaceChildren(errorCard(error)));
