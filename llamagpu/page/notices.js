// Notices above the conversation, and errors in three sentences.

import { button, byId, element } from "./elements.js";

/**
 * Shows a notice until it is dismissed. A notice of the same kind takes the place of the one before.
 * @param {string} text
 * @param {{kind?: string, action?: string, onAction?: () => void, silent?: boolean}} [options]
 *   `silent`: it changes too often for a screen reader
 */
export function notice(text, { kind = text, action, onAction, silent = false } = {}) {
  const close = () => made.remove();
  const live = silent ? "off" : null;
  const made = element("div", { class: "notice", "data-kind": kind, "aria-live": live }, element("p", { text }));
  if (action) made.append(button(action, () => (close(), onAction()), { class: "quiet" }));
  made.append(button("Dismiss", close, { class: "quiet" }));
  const old = [...byId("notices").children].find((child) => child.dataset.kind === kind);
  if (old) old.replaceWith(made);
  else byId("notices").append(made);
}

export function removeNotice(kind) {
  for (const child of [...byId("notices").children]) if (child.dataset.kind === kind) child.remove();
}

/**
 * What an error says: what happened, why, and what to do. Errors that are not the module's are the page's own faults.
 * @returns {{what: string, why: string, advice: string, code: string}}
 */
export function sentences(error) {
  if (error?.what) return { what: error.what, why: error.why, advice: error.advice, code: error.code };
  return {
    what: "The page failed in a way that it does not know.",
    why: String(error?.message ?? error),
    advice: "Reload the page. If this happens again, report it with the sentence above.",
    code: "unknown",
  };
}

/** An error's three sentences, and a button if it helps to try again. */
export function errorCard(error, { label = "Try again", onRetry = null } = {}) {
  const { what, why, advice } = sentences(error);
  const card = element(
    "div",
    { class: "error" },
    element("p", { class: "what" }, element("strong", { text: what })),
    element("p", { text: why }),
    element("p", { text: advice }),
  );
  if (onRetry) card.append(element("div", { class: "buttons" }, button(label, onRetry, { class: "primary" })));
  return card;
}
