// Settings of the answers: the dialog, and what it keeps. Only values that differ from the model's own are kept.

import { byId, bytes, count, element } from "./elements.js";

/** Fields by option of the module: label, hint, and the range that the module takes. */
const FIELDS = {
  temperature: { label: "Temperature", hint: "0 takes the likeliest token", min: 0, max: 10, step: "any", value: 0 },
  topK: { label: "Top-k", hint: "the k likeliest tokens; 0 takes all", min: 0, max: 1e6, step: 1, value: 0 },
  topP: { label: "Top-p", hint: "the likeliest tokens that make up this share", min: 0, max: 1, step: "any", value: 1 },
  minP: { label: "Min-p", hint: "at least this share of the likeliest token", min: 0, max: 1, step: "any", value: 0 },
  repetitionPenalty: { label: "Repetition penalty", hint: "1 is none", min: 0.01, max: 10, step: "any", value: 1 },
  maxTokens: { label: "Longest answer", hint: "in tokens", min: 1, max: 1e6, step: 1, value: 512 },
  seed: { label: "Seed", hint: "a number repeats an answer", min: 0, max: 2 ** 32 - 1, step: 1, value: null },
};

export class Settings {
  /** @param {string} key of localStorage @param {() => void} onSave */
  constructor(key, onSave) {
    this.key = key;
    this.onSave = onSave;
    this.defaults = Object.fromEntries(Object.entries(FIELDS).map(([name, field]) => [name, field.value]));
    this.own = read(key);
    this.dialog = byId("settings");
    byId("settings-fields").append(...Object.entries(FIELDS).map(([name, field]) => fieldRow(name, field)));
    byId("settings-form").addEventListener("submit", (event) => this.submit(event));
    byId("settings-reset").addEventListener("click", () => this.fill({}, ""));
    byId("settings-cancel").addEventListener("click", () => this.dialog.close());
  }

  /** @param {object} info of the loaded model */
  describe(info) {
    for (const name of Object.keys(FIELDS)) this.defaults[name] = info.generation?.[name] ?? FIELDS[name].value;
    this.defaults.maxTokens = Math.min(this.defaults.maxTokens, info.context ?? Infinity);
    byId("about").replaceChildren(...facts(info).flatMap(([term, text]) => [
      element("dt", { text: term }),
      element("dd", { text }),
    ]));
  }

  /** The options of a call. */
  get options() {
    const all = { ...this.defaults, ...this.own.options };
    return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== null));
  }

  /** The system prompt of new conversations. */
  get system() {
    return this.own.system ?? "";
  }

  /** @param {import("./conversations.js").Conversation} conversation whose system prompt the dialog edits */
  open(conversation) {
    this.conversation = conversation;
    byId("system-row").hidden = conversation.mode !== "chat";
    this.fill(this.own.options ?? {}, conversation.system);
    this.dialog.showModal();
  }

  fill(options, system) {
    byId("system").value = system;
    for (const name of Object.keys(FIELDS)) {
      const input = byId(`setting-${name}`);
      input.value = options[name] ?? "";
      input.placeholder = this.defaults[name] ?? "drawn anew";
    }
  }

  submit(event) {
    event.preventDefault();
    const options = {};
    for (const name of Object.keys(FIELDS)) {
      const text = byId(`setting-${name}`).value.trim();
      if (text !== "") options[name] = Number(text);
    }
    this.own = { options, system: byId("system").value };
    this.conversation.system = this.own.system;
    this.dialog.close();
    this.kept = write(this.key, this.own);
    this.onSave();
  }
}

function fieldRow(name, { label, hint, min, max, step }) {
  const id = `setting-${name}`;
  return element(
    "div",
    { class: "field" },
    element("label", { for: id, text: label }),
    element("input", { id, type: "number", min, max, step, inputmode: "decimal", "aria-describedby": `${id}-hint` }),
    element("small", { id: `${id}-hint`, text: hint }),
  );
}

/** @returns {[string, string][]} what is known of the model and its adapter */
function facts(info) {
  const { adapter = {}, memory = {} } = info;
  const kind = adapter.software ? ", in software" : "";
  const rows = [
    ["Model", info.title ?? info.name],
    ["Parameters", info.parameters && count(info.parameters)],
    ["Weights", info.dtype],
    ["Context", info.context && `${count(info.context)} tokens`],
    ["Adapter", adapter.name && adapter.name + kind],
    ["Profile", info.profile],
    ["Memory", memory.total && bytes(memory.total)],
    ["of it weights", memory.weights && bytes(memory.weights)],
    ["of it cache", memory.cache && bytes(memory.cache)],
    ["of it activations", memory.activations && bytes(memory.activations)],
  ];
  return rows.filter(([, text]) => text);
}

function read(key) {
  try {
    const found = JSON.parse(localStorage.getItem(key));
    return found && typeof found === "object" ? found : {};
  } catch {
    return {}; // no storage, or not our text: begin with the model's own values
  }
}

function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}
