/** The error of everything that goes wrong on purpose. */
export class LLMError extends Error {
  /**
   * @param {string} code A short name for programs, such as "bad-argument".
   * @param {string} what One sentence.
   * @param {string} why One sentence, or nothing.
   * @param {string} advice What to do, or nothing.
   */
  constructor(code, what, why = "", advice = "") {
    super([what, why, advice].filter(Boolean).join("\n"));
    this.name = "LLMError";
    Object.assign(this, { code, what, why, advice });
  }
}
