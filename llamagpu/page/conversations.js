// Conversations in this browser: one IndexedDB record each, so that tabs do not overwrite each other's.

/**
 * @typedef {{role: "user"|"assistant", content: string, note?: string}} Message
 * @typedef {object} Conversation
 * @property {string} id
 * @property {number} revision 0 before it was saved, counts the saves
 * @property {string} title
 * @property {"chat"|"text"} mode
 * @property {string} system the system prompt
 * @property {Message[]} messages of a chat, or the parts of a text by author
 * @property {number} updated milliseconds since 1970
 */

const STORE = "conversations";
const UNTITLED = "New conversation";

/** @param {"chat"|"text"} mode @param {string} system @returns {Conversation} */
export function newConversation(mode, system = "") {
  return { id: newId(), revision: 0, title: UNTITLED, mode, system, messages: [], updated: Date.now() };
}

function newId() {
  const random = crypto.getRandomValues(new Uint32Array(2)); // randomUUID needs https
  return `${Date.now().toString(36)}-${random[0].toString(36)}${random[1].toString(36)}`;
}

/** Names a conversation by its first words, unless it has a name. */
export function giveTitle(conversation) {
  if (conversation.title !== UNTITLED || !conversation.messages.length) return;
  const text = conversation.messages[0].content.trim().replace(/\s+/g, " ");
  if (text) conversation.title = text.length > 48 ? `${text.slice(0, 47).trimEnd()}…` : text;
}

/** Keeps conversations, in memory alone where the browser gives no storage. */
export class Conversations {
  constructor(name) {
    this.name = name;
    this.memory = new Map(); // conversations while there is no database
    this.database = null;
    this.channel = "BroadcastChannel" in globalThis ? new BroadcastChannel(name) : null;
    this.last = Promise.resolve(); // saves run one after the other: each needs the revision of the one before
  }

  /** @param {string} name of the database @param {(id: string) => void} onChange after another tab's change */
  static async open(name, onChange) {
    const made = new Conversations(name);
    if (made.channel) made.channel.onmessage = (event) => onChange(event.data);
    try {
      made.database = await openDatabase(name);
    } catch {
      made.database = null;
    }
    return made;
  }

  /** Whether conversations outlive the page. */
  get lasting() {
    return this.database !== null;
  }

  /** @returns {Promise<Conversation[]>} newest first */
  async list() {
    const all = this.lasting ? await this.run("readonly", (store) => store.getAll()) : [...this.memory.values()];
    return all.sort((a, b) => b.updated - a.updated);
  }

  /** @returns {Promise<Conversation|undefined>} */
  async get(id) {
    if (!this.lasting) return structuredClone(this.memory.get(id));
    return this.run("readonly", (store) => store.get(id));
  }

  /**
   * Saves, and sets the new revision. If another tab saved the conversation meanwhile, it becomes a copy.
   * @returns {Promise<boolean>} whether it became a copy
   * @throws {DOMException} if there is no room
   */
  save(conversation) {
    const saving = this.last.then(() => this.saveNow(conversation));
    this.last = saving.catch(() => {}); // the caller of this save hears of it
    return saving;
  }

  async saveNow(conversation) {
    const record = structuredClone({ ...conversation, revision: conversation.revision + 1 });
    if (!this.lasting) {
      this.memory.set(record.id, record);
      conversation.revision = record.revision;
      return false;
    }
    let copied = false;
    await this.run("readwrite", (store) => {
      const stored = store.get(record.id);
      stored.onsuccess = () => {
        copied = stored.result !== undefined && stored.result.revision !== conversation.revision;
        if (copied) Object.assign(record, { id: newId(), revision: 1, title: `${record.title} (copy)` });
        store.put(record, record.id);
      };
      return stored;
    });
    Object.assign(conversation, { id: record.id, revision: record.revision, title: record.title });
    this.channel?.postMessage(record.id);
    return copied;
  }

  async remove(id) {
    this.memory.delete(id);
    if (this.lasting) await this.run("readwrite", (store) => store.delete(id));
    this.channel?.postMessage(id);
  }

  /** Runs requests in one transaction, and waits until it is written. */
  run(mode, work) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(STORE, mode);
      const request = work(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error ?? new DOMException("Aborted.", "AbortError"));
    });
  }
}

function openDatabase(name) {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(request.error);
  });
}
