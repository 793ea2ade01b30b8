// The page: fills the article's places for kernels, sizes and figures, and runs what the reader asks for.

import { compile, evaluate, openDevice, parse, Refused, run } from "./kernel.js";
import { compare, references, tensor } from "./reference.js";

const VERDICTS = {
  refused: "does not compile",
  wrong: "wrong numbers",
  right: "right",
  failed: "could not run",
};
const HERE = { compile: "refused", wrong: "wrong", right: "right" }; // what the article says

const load = async (path, as = "json") => {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status} ${response.statusText}`);
  return response[as]();
};

/** An element with attributes and children. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const exponential = (v) => (v === 0 ? "0" : Number.isFinite(v) ? v.toExponential(1) : "not finite");
const decimal = (v) => (v >= 100 ? v.toFixed(0) : v.toPrecision(2));

/** Sizes, inputs and the expected result of a lesson; they are made again when the reader edits a size. */
class Lesson {
  constructor(name, rules) {
    Object.assign(this, rules, { name });
    this.cards = [];
    this.sizes = { ...rules.sizes };
  }

  form() {
    const fields = Object.entries(this.sizes).map(([name, value]) => {
      const whole = Number.isInteger(value) && name !== "mean";
      const input = make("input", { type: "number", name, value, step: whole ? 1 : "any", ...(whole && { min: 1 }) });
      input.addEventListener("change", () => this.resize(name, input));
      return make("label", {}, `${name} `, input);
    });
    const button = make("button", { type: "submit" }, "Run all of this lesson");
    const form = make("form", { class: "sizes", "aria-label": `Sizes of the lesson ${this.name}` }, ...fields, button);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.cards.forEach((card) => card.start());
    });
    return form;
  }

  resize(name, input) {
    if (!input.reportValidity() || input.value === "") return;
    this.sizes[name] = Number(input.value);
    this.made = undefined;
    this.cards.forEach((card) => card.forget());
  }

  /** Inputs and the reference's result. */
  data() {
    if (!this.made) {
      const entries = Object.entries(this.inputs).map(([name, rule], i) => [name, tensor(rule, this.sizes, i + 1)]);
      const inputs = Object.fromEntries(entries);
      const shape = this.out.map((n) => this.sizes[n] ?? n);
      this.made = { inputs, shape, expected: references[this.name](inputs, this.sizes) };
    }
    return this.made;
  }
}

/** Text with line numbers, whose wrong lines can be marked. */
class Editor {
  constructor(label, code, editable) {
    this.numbers = make("pre", { class: "numbers", "aria-hidden": "true" });
    this.area = make("textarea", { "aria-label": label, spellcheck: "false", wrap: "off", autocapitalize: "off" });
    this.area.readOnly = !editable;
    this.area.value = code.trimEnd();
    this.area.addEventListener("input", () => this.mark([]));
    this.element = make("div", { class: "editor" }, this.numbers, this.area);
    this.mark([]);
  }

  get code() {
    return this.area.value;
  }

  set code(text) {
    this.area.value = text.trimEnd();
    this.mark([]);
  }

  mark(lines) {
    const count = this.code.split("\n").length;
    this.area.rows = count;
    const rows = Array.from({ length: count }, (_, i) => {
      return make("span", lines.includes(i + 1) ? { class: "bad" } : {}, `${i + 1}\n`);
    });
    this.numbers.replaceChildren(...rows);
  }
}

/** A kernel on the page: its text, a button that runs it, and what came out. */
class Card {
  constructor(page, lesson, name, code, ours, measured) {
    const key = ours ? `ours/${name}` : name;
    const file = `${key}.wgsl`;
    Object.assign(this, { page, lesson, name, key, original: code, ours });
    this.editor = new Editor(`Text of ${file}`, code, !ours);
    this.output = make("output", { "aria-live": "polite" });
    this.button = make("button", { type: "button" }, "Run");
    this.button.addEventListener("click", () => this.start());
    const head = make("p", { class: "head" }, make("code", {}, file), this.button, ...(ours ? [] : [this.undo()]));
    this.details = make("details", {}, make("summary", {}, "The whole text"), this.editor.element);
    this.element = make("section", { class: "kernel", id: key.replace("/", "-"), "aria-label": file }, head);
    this.element.append(this.output, this.details, measuredList(measured));
    lesson.cards.push(this);
  }

  undo() {
    const button = make("button", { type: "button" }, "Undo edits");
    button.addEventListener("click", () => {
      this.editor.code = this.original;
      this.forget();
    });
    return button;
  }

  forget() {
    delete this.element.dataset.outcome;
    this.output.replaceChildren();
  }

  /** Runs after everything that was started before. */
  start() {
    this.forget();
    this.output.textContent = "Waiting …";
    return this.page.enqueue(() => this.run());
  }

  async run() {
    this.output.textContent = "Running …";
    this.editor.mark([]);
    await new Promise((resolve) => setTimeout(resolve)); // so that the text above is painted
    const found = await this.measure().catch((error) => this.failure(error));
    this.result = found;
    this.element.dataset.outcome = found.outcome;
    this.show(found);
  }

  failure(error) {
    if (!(error instanceof Refused)) console.error(error);
    const outcome = error instanceof Refused ? "refused" : "failed";
    return { outcome, message: error.message, lines: error.lines ?? [] };
  }

  async measure() {
    const { sizes, bound, speed } = this.lesson;
    const kernel = this.ours ? oursKernel(this.ours, this.original) : parse(this.editor.code);
    const device = await this.page.device();
    const compiled = await compile(device, kernel);
    const { inputs, shape, expected } = this.lesson.data();
    const got = await run(device, kernel, compiled, sizes, inputs, shape);
    const compared = compare(got.values, expected, bound);
    const rate = evaluate(speed.work, sizes) / got.ms / 1e6;
    const outcome = compared.wrong || got.spoilt ? "wrong" : "right";
    return { outcome, ...compared, spoilt: got.spoilt, rate, ms: got.ms, how: got.how, values: got.values, expected };
  }

  show(found) {
    const verdict = make("strong", { class: found.outcome }, VERDICTS[found.outcome]);
    if (found.message !== undefined) {
      this.output.replaceChildren(verdict, messageOf(found.message));
      this.editor.mark(found.lines);
      if (found.lines.length) this.details.open = true;
      return;
    }
    const { unit } = this.lesson.speed;
    const error = `error ${exponential(found.error)} (bound ${exponential(this.lesson.bound)})`;
    const speed = `${decimal(found.rate)} ${unit}: ${decimal(found.ms)} ms by ${found.how}`;
    this.output.replaceChildren(verdict, ` ${error}, ${speed}.`);
    if (found.spoilt) this.output.append(` It overwrote ${found.spoilt} numbers behind its output.`);
    const off = ` ${found.wrong} of ${found.values.length} elements are off:`;
    if (found.wrong) this.output.append(off, this.table(found));
  }

  table(found) {
    const { values, expected } = found;
    const rows = found.examples.map((i) => make("tr", {}, ...[i, values[i], expected[i]].map((v, column) => {
      return make("td", {}, column ? v.toPrecision(6) : String(v));
    })));
    const head = make("tr", {}, ...["element", "kernel", "float64"].map((text) => make("th", { scope: "col" }, text)));
    return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  }
}

function oursKernel(described, code) {
  const { grid, params, bindings, overrides } = described;
  return { code, grid, params, bindings, overrides, padded: true };
}

/** What `measured.json` says of a kernel, as a list. */
function measuredList(measured) {
  const items = Object.entries(measured ?? {}).map(([where, found]) => {
    const message = found.message && make("details", {}, make("summary", {}, "its message"), messageOf(found.message));
    return make("li", {}, `${where}: ${summary(found)}`, ...(message ? [message] : []));
  });
  return make("ul", { class: "measured", "aria-label": "Measured for this page" }, ...items);
}

function messageOf(text) {
  return make("pre", { class: "message", tabindex: "0" }, text.trim());
}

function summary(found) {
  if (found.outcome !== "right" && found.outcome !== "wrong") return VERDICTS[found.outcome] ?? found.outcome;
  const error = found.error === null ? "not finite" : exponential(found.error);
  const spoilt = found.spoilt ? `, ${found.spoilt} numbers overwritten` : "";
  return `${VERDICTS[found.outcome]}, error ${error}${spoilt}, ${decimal(found.rate)} ${found.unit}`;
}

/** The table of all kernels and all places where they were measured. */
function figures(measured, lessons) {
  const places = measured.places.map((place) => place.name);
  const head = make("tr", {}, ...["kernel", ...places].map((text) => make("th", { scope: "col" }, text)));
  const rows = Object.values(lessons).flatMap((lesson) => names(lesson).map(({ key }) => {
    const cells = places.map((place) => make("td", {}, summary(measured.kernels[key][place])));
    return make("tr", {}, make("th", { scope: "row" }, make("code", {}, key)), ...cells);
  }));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

/** The kernels of a lesson: its first versions, the corrected one, and the project's. */
function names(lesson) {
  const own = Object.keys(lesson.versions).map((name) => ({ name, key: name, ours: false }));
  return [...own, ...lesson.ours.map((name) => ({ name, key: `ours/${name}`, ours: true }))];
}

class Page {
  constructor() {
    this.last = Promise.resolve();
    this.cards = [];
  }

  /** Runs one piece of work after another: they share the device and its error scopes. */
  enqueue(work) {
    this.last = this.last.then(work);
    return this.last;
  }

  /** The device, opened when it is first needed, and again after it was lost. */
  async device() {
    this.opened ??= this.open();
    return (await this.opened).device;
  }

  async open() {
    const opened = await openDevice();
    opened.device.lost.then(() => (this.opened = undefined));
    const { vendor, architecture, description } = opened.info;
    document.getElementById("adapter").textContent = [vendor, architecture, description].filter(Boolean).join(", ");
    return opened;
  }

  async fill() {
    const files = ["lessons.json", "ours.json", "measured.json"];
    const [rules, ours, measured] = await Promise.all(files.map((file) => load(file)));
    this.lessons = Object.fromEntries(Object.entries(rules).map(([name, rule]) => [name, new Lesson(name, rule)]));
    await Promise.all(Object.values(this.lessons).flatMap((lesson) => names(lesson).map(async (kernel) => {
      kernel.code = await load(`${kernel.key}.wgsl`, "text");
      const place = document.querySelector(`[data-kernel="${kernel.key}"]`);
      const described = kernel.ours ? ours[kernel.name] : undefined;
      const card = new Card(this, lesson, kernel.name, kernel.code, described, measured.kernels[kernel.key]);
      this.cards.push(card);
      place.replaceChildren(card.element);
    })));
    for (const lesson of Object.values(this.lessons)) {
      const order = names(lesson).map(({ key }) => key);
      lesson.cards.sort((a, b) => order.indexOf(a.key) - order.indexOf(b.key));
      document.querySelector(`[data-sizes="${lesson.name}"]`).replaceChildren(lesson.form());
    }
    document.getElementById("figures").replaceChildren(figures(measured, this.lessons));
    const places = measured.places.map(({ name, what }) => make("li", {}, `${name}: ${what}`));
    document.getElementById("places").replaceChildren(...places);
  }

  /** Runs every kernel; for the button, and for the test of the page. @returns what came out, by kernel */
  async runAll() {
    for (const lesson of Object.values(this.lessons)) lesson.cards.forEach((card) => card.start());
    await this.last;
    return Object.fromEntries(this.cards.map(({ key, lesson, name, ours, result }) => {
      const { outcome, message, lines, error, spoilt, rate, how } = result;
      const expected = HERE[ours ? "right" : lesson.versions[name]];
      const finite = Number.isFinite(error) ? error : null;
      return [key, { outcome, expected, message, lines, error: finite, spoilt, rate, how, unit: lesson.speed.unit }];
    }));
  }
}

const page = new Page();
const status = document.getElementById("status");
page.fill().then(
  () => {
    const button = document.getElementById("run-all");
    button.disabled = false;
    button.addEventListener("click", () => page.runAll());
    status.textContent = navigator.gpu ? "" : "This browser has no WebGPU: read on, but the kernels cannot run.";
    window.lessonPage = page;
  },
  (error) => {
    status.textContent = `A file is missing (${error.message}). Serve the folder: python -m http.server -d docs/wgsl`;
  },
);
