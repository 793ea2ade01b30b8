// Small helpers to build the document. No text ever goes through an HTML parser: text from a model stays text.

/** @param {string} id @returns {HTMLElement} */
export const byId = (id) => document.getElementById(id);

/**
 * Makes an element. `class`, `text` and `on` (listeners by event) are special, `true` and `false` set or omit an
 * attribute, all others are attributes.
 * @param {string} tag
 * @param {Object<string, any>} [properties]
 * @param {...(Node|string)} children
 * @returns {HTMLElement}
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  made.append(...children); // before dir="auto", with which each child costs a look at all children
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") made.textContent = value;
    else if (name === "class") made.className = value;
    else if (name === "on") listen(made, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  return made;
}

function listen(target, listeners) {
  for (const [event, listener] of Object.entries(listeners)) target.addEventListener(event, listener);
}

/** A button with a text. @returns {HTMLButtonElement} */
export function button(text, onClick, properties = {}) {
  return element("button", { type: "button", text, on: { click: onClick }, ...properties });
}

/** Says a text through a screen reader, when it has finished what it says. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** @returns {Promise<boolean>} whether the clipboard has the text now */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // pages without https have no navigator.clipboard
  }
}

function copyBySelection(text) {
  const focused = document.activeElement;
  const area = element("textarea", { class: "offscreen", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}

/** A button that copies what `source()` returns, and says for a moment whether it could. */
export function copyButton(source, label) {
  const made = button("Copy", async () => {
    const copied = await copyText(source());
    made.textContent = copied ? "Copied" : "Not copied";
    announce(copied ? "Copied." : "The browser did not allow to copy.");
    setTimeout(() => (made.textContent = "Copy"), 2000);
  }, { class: "quiet", "aria-label": label });
  return made;
}

/** Offers a file to save. */
export function saveFile(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Makes a textarea as high as its text; the style sheet has the maximum. */
export function fitHeight(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

/** 1234567 -> "1.2 MB" (decimal units, as in downloads). */
export function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.max(Math.floor(Math.log10(Math.max(count, 1)) / 3), 0), units.length - 1);
  const value = count / 1000 ** power;
  return `${value.toFixed(power && value < 10 ? 1 : 0)} ${units[power]}`;
}

/** 1234567 -> "1,234,567" in the reader's own form. */
export const count = (number) => number.toLocaleString();
