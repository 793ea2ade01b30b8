// The card that loads the model: what it will download, its progress, and what went wrong.

import { announce, button, byId, bytes, count, element } from "./elements.js";
import { errorCard, notice, removeNotice, sentences } from "./notices.js";

const STAGES = {
  check: "Check the GPU",
  download: "Download the model",
  compile: "Compile the shaders",
  upload: "Copy the weights to the GPU",
};
const IN_BYTES = new Set(["download", "upload"]);
const PASSING = "loading"; // notices that are out of date when the model is ready
const NO_RETRY = new Set(["no-webgpu", "too-small", "bad-argument", "no-template"]); // the next try would fail as well

export class Loading {
  /**
   * @param {{title: string, downloadBytes?: number, local: boolean}} config of page.json
   * @param {{get: () => boolean, set: (on: boolean) => void}} atOnce whether the user wants no question
   * @param {(options: object) => Promise<object>} load the module's
   * @param {(llm: object) => void} onLoaded
   */
  constructor(config, atOnce, load, onLoaded) {
    Object.assign(this, { config, atOnce, load, onLoaded });
    this.card = byId("start");
    this.rows = new Map();
    this.said = "";
    if (config.local && !atOnce.get()) this.ask();
    else this.begin();
  }

  ask() {
    const { title, downloadBytes } = this.config;
    const size = downloadBytes ? `The model is a download of ${bytes(downloadBytes)}. ` : "";
    const box = element("input", { type: "checkbox", checked: this.atOnce.get(), on: {
      change: () => this.atOnce.set(box.checked),
    } });
    const check = "Your GPU is checked first, before anything is downloaded.";
    this.card.replaceChildren(
      element("h2", { text: title }),
      element("p", { text: `${size}It runs on this device: what you write does not leave it.` }),
      element("p", { class: "small", text: check }),
      element("div", { class: "buttons" }, button("Load the model", () => this.begin(), { class: "primary" })),
      element("label", { class: "check" }, box, "Load at once on my next visit"),
    );
  }

  /** Loads a model in place of one that is gone. */
  again() {
    this.llm = null;
    this.card.hidden = false;
    this.begin();
    this.cancel.focus();
  }

  async begin() {
    const hadFocus = this.card.contains(document.activeElement);
    this.stop = new AbortController();
    this.showProgress();
    if (hadFocus) this.cancel.focus();
    try {
      const llm = await this.load({
        signal: this.stop.signal,
        onProgress: (progress) => this.progress(progress),
        onNotice: (text, { lasting = false } = {}) => notice(text, lasting ? {} : { kind: PASSING }),
      });
      this.finish(llm);
    } catch (error) {
      this.fail(error);
    }
  }

  finish(llm) {
    const focus = this.card.contains(document.activeElement);
    this.llm = llm;
    this.card.hidden = true;
    this.card.replaceChildren();
    removeNotice(PASSING);
    announce("The model is ready.");
    this.onLoaded(llm);
    if (focus || document.activeElement === document.body) byId("prompt").focus({ preventScroll: true });
  }

  fail(error) {
    const focus = this.card.contains(document.activeElement);
    if (this.stop.signal.aborted) this.ask();
    else {
      const retry = NO_RETRY.has(sentences(error).code) ? null : () => this.begin();
      this.card.replaceChildren(element("div", { role: "alert" }, errorCard(error, { onRetry: retry })));
    }
    if (focus) this.card.querySelector("button")?.focus();
  }

  showProgress() {
    this.rows.clear();
    this.list = element("ol", { class: "stages" });
    this.bar = element("progress", { "aria-label": "Loading" });
    this.detail = element("p", { class: "small" });
    this.cancel = button("Cancel", () => this.stop.abort(), { class: "quiet" });
    const title = element("h2", { text: `Loading ${this.config.title}` });
    const cancel = this.config.local ? [element("div", { class: "buttons" }, this.cancel)] : [];
    this.card.replaceChildren(title, this.list, this.bar, this.detail, ...cancel);
    if (this.config.local) for (const stage of Object.keys(STAGES)) this.row(stage);
  }

  row(stage) {
    if (!this.rows.has(stage)) {
      const state = element("span", { class: "state" });
      const item = element("li", {}, element("span", { text: STAGES[stage] ?? stage }), state);
      this.rows.set(stage, { item, state });
      this.list.append(item);
    }
    return this.rows.get(stage);
  }

  progress(event) {
    if (this.llm) {
      this.progressAgain(event);
      return;
    }
    const { stage, done, total, detail } = event;
    const row = this.row(stage);
    for (const [name, { item, state }] of this.rows) {
      if (name === stage) break;
      item.dataset.state = "done";
      state.textContent = "done";
    }
    row.item.dataset.state = "active";
    row.state.textContent = amount(event);
    if (detail) this.detail.textContent = detail;
    if (total) Object.assign(this.bar, { max: total, value: done });
    else this.bar.removeAttribute("value");
    this.say(stage, total ? done / total : 0);
  }

  /** The module loads again after the GPU was lost, while the page is in use. */
  progressAgain(event) {
    const { stage, done, total } = event;
    if (stage === "upload" && done >= total) {
      for (const kind of [PASSING, "progress"]) removeNotice(kind);
      announce("The model is ready again.");
    } else notice(`${STAGES[stage] ?? stage}: ${amount(event)}`, { kind: "progress", silent: true });
  }

  /** Tells a screen reader of each stage, and of its quarters: every event would be too many. */
  say(stage, share) {
    const quarter = Math.floor(share * 4) * 25;
    const text = `${STAGES[stage] ?? stage}${quarter ? `, ${quarter} percent` : ""}`;
    if (text !== this.said) announce(text);
    this.said = text;
  }
}

function amount({ stage, done, total }) {
  if (!total) return "…";
  const form = IN_BYTES.has(stage) ? bytes : count;
  return `${form(done)} of ${form(total)}`;
}
