// The list of conversations.

import { announce, button, byId, element, saveFile } from "./elements.js";
import { notice } from "./notices.js";

export class Sidebar {
  /** @param {import("./session.js").Session} session @param {import("./conversations.js").Conversations} store */
  constructor(session, store) {
    Object.assign(this, { session, store });
    this.panel = byId("sidebar");
    this.toggle = byId("menu");
    this.toggle.addEventListener("click", () => this.setOpen(!this.isOpen));
    byId("backdrop").addEventListener("click", () => this.setOpen(false));
    byId("new").addEventListener("click", () => this.create());
    matchMedia("(width >= 56rem)").addEventListener("change", () => this.isOpen && this.setOpen(false));
    byId("export-all").addEventListener("click", () => this.exportAll());
    byId("storage").textContent = store.lasting
      ? "Conversations are kept in this browser only."
      : "This browser gives the page no storage. Closing or reloading the page loses the conversations: export them.";
  }

  get isOpen() {
    return this.panel.classList.contains("open");
  }

  /** On narrow screens the list lies over the page. */
  setOpen(open) {
    this.panel.classList.toggle("open", open);
    this.toggle.setAttribute("aria-expanded", String(open));
    document.querySelector("main").inert = open;
    if (open) byId("new").focus();
    else this.toggle.focus();
  }

  create() {
    this.session.create(this.session.current.mode);
    if (this.isOpen) this.setOpen(false);
    byId("prompt").focus();
  }

  async refresh() {
    if (this.panel.querySelector("input")) return; // a title is being typed
    const all = await this.store.list().catch(() => []);
    const focused = document.activeElement?.closest?.("#list [data-id]")?.dataset.id;
    byId("list").replaceChildren(...all.map((conversation) => this.row(conversation)));
    byId("export-all").hidden = !all.length;
    if (focused) byId("list").querySelector(`[data-id="${CSS.escape(focused)}"] button`)?.focus();
  }

  row(conversation) {
    const { id, title, updated } = conversation;
    const current = id === this.session.current.id;
    const date = new Date(updated).toLocaleDateString(undefined, { day: "numeric", month: "short" });
    const open = element(
      "button",
      { type: "button", class: "entry", "aria-current": current ? "true" : null, on: { click: () => this.open(id) } },
      element("span", { text: title }),
      element("small", { text: this.session.running?.conversation.id === id ? "answering" : date }),
    );
    return element("li", { "data-id": id }, open, ...(current ? [this.tools(conversation)] : []));
  }

  tools(conversation) {
    const { title } = conversation;
    const quiet = (text, action) => button(text, action, { class: "quiet", "aria-label": `${text} ${title}` });
    return element(
      "div",
      { class: "tools" },
      quiet("Rename", (event) => this.rename(conversation, event.target.closest("li"))),
      quiet("Export", () => save(title, [conversation])),
      quiet("Delete", () => this.remove(conversation)),
    );
  }

  async open(id) {
    if (this.isOpen) this.setOpen(false);
    if (!(await this.session.open(id))) notice("Another tab deleted this conversation.", { kind: "gone" });
  }

  rename({ id, title }, row) {
    const input = element("input", { type: "text", "aria-label": "New title", value: title, maxlength: 200 });
    let ended = false; // removing the field is a blur as well
    const end = async (keep) => {
      if (ended) return;
      ended = true;
      const text = input.value.trim();
      input.remove();
      if (keep && text && text !== title) await this.setTitle(id, text);
      await this.refresh();
      byId("list").querySelector(`[data-id="${CSS.escape(id)}"] button`)?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key !== "Escape") return;
      event.stopPropagation();
      end(false);
    });
    input.addEventListener("blur", () => end(true));
    row.replaceChildren(input);
    input.select();
  }

  async setTitle(id, title) {
    const { current } = this.session;
    const conversation = current.id === id ? current : await this.store.get(id);
    if (conversation) await this.session.save(Object.assign(conversation, { title }));
  }

  async remove(conversation) {
    const { session } = this;
    if (session.running?.conversation.id === conversation.id) {
      session.stop();
      await session.running?.done;
    }
    const kept = (await this.store.get(conversation.id)) ?? conversation;
    await this.store.remove(conversation.id);
    session.create(conversation.mode);
    announce("Deleted.");
    const onAction = async () => {
      await session.save(Object.assign(kept, { revision: 0 }));
      await session.open(kept.id);
    };
    notice(`“${conversation.title}” was deleted.`, { kind: "undo", action: "Undo", onAction });
    byId("new").focus();
  }

  async exportAll() {
    save("conversations", await this.store.list());
  }
}

/** Writes conversations as JSON: a list of titles, dates and messages. */
function save(name, conversations) {
  const content = conversations.map(({ title, mode, system, updated, messages }) => ({
    title,
    mode,
    system,
    updated: new Date(updated).toISOString(),
    messages: messages.map(({ role, content }) => ({ role, content })),
  }));
  const file = name.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().slice(0, 60) || "conversation";
  saveFile(`${file}.json`, `${JSON.stringify(content, null, 2)}\n`);
}
