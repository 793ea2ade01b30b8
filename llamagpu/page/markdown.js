// Markdown as nodes, for text that is complete and for text that grows.

import { parseBlocks } from "./blocks.js";
import { copyButton, element } from "./elements.js";
import { inline } from "./inline.js";

/** Shows a growing Markdown text in an element. Each update renders only the blocks that can still change. */
export class MarkdownView {
  /** @param {HTMLElement} parent which this view fills */
  constructor(parent) {
    this.parent = parent;
    parent.replaceChildren();
    this.stable = 0; // characters that stand in blocks which no later text can change
    this.open = []; // the other blocks, and their nodes
  }

  /** @param {string} text all of it, which begins with the text of the last update */
  update(text) {
    const lines = text.slice(this.stable).split("\n");
    const blocks = parseBlocks(lines);
    const old = this.open;
    this.open = blocks.map((block, i) => ({ block, node: this.place(block, old[i]) }));
    for (const { node } of old.slice(blocks.length)) node.remove();
    this.settle(text);
  }

  place(block, old) {
    if (old && block.type === "code" && growCode(old, block)) return old.node;
    const node = renderBlock(block);
    if (old) old.node.replaceWith(node);
    else this.parent.append(node);
    return node;
  }

  /** Blocks before the last one cannot change, unless the last one has no complete line yet: "-" may become an item. */
  settle(text) {
    const lines = text.slice(this.stable).split("\n");
    let keep = this.open.length - 1;
    if (keep > 0 && this.open[keep].block.start === lines.length - 1) keep--;
    if (keep <= 0) return;
    const done = lines.slice(0, this.open[keep].block.start);
    this.stable += done.reduce((sum, line) => sum + line.length + 1, 0);
    this.open = this.open.slice(keep);
    const shift = done.length;
    for (const { block } of this.open) block.start -= shift;
  }
}

/** A long code block grows by appending, so that its selection and the time for it stay. */
function growCode(old, block) {
  if (old.block.type !== "code" || old.block.language !== block.language) return false;
  if (!block.text.startsWith(old.block.text)) return false;
  old.node.querySelector("code").firstChild.appendData(block.text.slice(old.block.text.length));
  return true;
}

/** @param {string} text @returns {HTMLElement} */
export function markdown(text) {
  const parent = element("div", { class: "markdown" });
  new MarkdownView(parent).update(text);
  return parent;
}

const RENDER = {
  code: renderCode,
  heading: ({ level, text }) => element(`h${Math.min(level + 2, 6)}`, { dir: "auto" }, inline(text)),
  rule: () => element("hr"),
  quote: ({ blocks }) => element("blockquote", { dir: "auto" }, ...blocks.map(renderBlock)),
  list: renderList,
  table: renderTable,
  paragraph: ({ text }) => element("p", { dir: "auto" }, inline(text)),
};

function renderBlock(block) {
  return RENDER[block.type](block);
}

function renderCode({ language, text }) {
  const content = document.createTextNode(text); // kept as one node, also if it is empty, so that it can grow
  const code = element("code", {}, content);
  const label = language ? `Code, ${language}` : "Code";
  const copy = copyButton(() => content.data, "Copy code");
  return element(
    "figure",
    { class: "code" },
    element("figcaption", {}, element("span", { text: language || "code" }), copy),
    element("pre", { tabindex: "0", role: "region", "aria-label": label, dir: "ltr" }, code),
  );
}

function renderList({ ordered, first: number, items }) {
  const start = ordered && number !== 1 ? number : null;
  return element(ordered ? "ol" : "ul", { dir: "auto", start }, ...items.map(renderItem));
}

function renderItem([first, ...rest]) {
  if (!first) return element("li");
  const text = first.type === "paragraph" ? inline(first.text) : renderBlock(first);
  return element("li", {}, text, ...rest.map(renderBlock));
}

function renderTable({ alignments, head, rows }) {
  const cell = (tag, text, i) => element(tag, { "data-align": alignments[i], dir: "auto" }, inline(text));
  const row = (tag, texts) => element("tr", {}, ...texts.map((text, i) => cell(tag, text, i)));
  const table = element(
    "table",
    {},
    element("thead", {}, row("th", head)),
    element("tbody", {}, ...rows.map((texts) => row("td", texts))),
  );
  return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}
