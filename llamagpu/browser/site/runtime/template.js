/**
 * The template library with Python's meaning of what chat templates do with text.
 *
 * The library's strip takes no argument, its trim knows JavaScript's white space, its length counts UTF-16 units, and
 * its clock writes the names of months in the browser's language. So calls of these are replaced in the parsed
 * template.
 */
import { Environment, Interpreter, Template } from "./libraries/jinja.js";

const MONTHS = "January February March April May June July August September October November December".split(" ");
const DAYS = "Sunday Monday Tuesday Wednesday Thursday Friday Saturday".split(" ");
const SPACE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]/;
const MOST_ITEMS = 100_000; // of a range
const METHODS = new Map([
  ["strip", (text, characters) => strip(method(text), characters, true, true)],
  ["lstrip", (text, characters) => strip(method(text), characters, true, false)],
  ["rstrip", (text, characters) => strip(method(text), characters, false, true)],
  ["capitalize", (text) => capitalized(method(text))],
]);
const FILTERS = new Map([
  ["trim", (value, characters) => strip(written(value), characters, true, true)],
  ["capitalize", (value) => capitalized(written(value))],
  ["length", length],
  ["count", length],
]);
// Names with a space are no template's own.
const REPLACED = [
  ...[...METHODS].map(([name, made]) => [`method ${name}`, made]),
  ...[...FILTERS].map(([name, made]) => [`filter ${name}`, made]),
];
const GLOBALS = {
  ...{ true: true, True: true, false: false, False: false, none: null, None: null, range },
  ...Object.fromEntries(REPLACED),
  raise_exception: (message) => {
    throw new Error(message);
  },
};

/** @param {string} source Jinja. @returns {object} A program for `run`. @throws What the library throws. */
export function compile(source) {
  return replaced(new Template(source).parsed);
}

/** What a program writes with some variables; `now` is its clock. @returns {string} */
export function run(program, values, now) {
  const environment = new Environment();
  const given = { ...GLOBALS, strftime_now: (format) => strftime(now, format), ...values };
  for (const [name, value] of Object.entries(given)) environment.set(name, value);
  return new Interpreter(environment).run(program).value;
}

/** A part of a program, with calls of our functions in it. */
function replaced(node) {
  if (Array.isArray(node)) return node.map(replaced);
  if (node instanceof Map) return new Map([...node].map(([key, value]) => [replaced(key), replaced(value)]));
  if (node === null || typeof node !== "object") return node;
  for (const [key, value] of Object.entries(node)) node[key] = replaced(value);
  const { callee, args, filter } = node;
  if (node.type === "CallExpression" && callee.type === "MemberExpression" && !callee.computed) {
    if (METHODS.has(callee.property.value)) return call(`method ${callee.property.value}`, callee.object, args);
  }
  if (node.type === "FilterExpression") {
    const { value: name } = filter.callee ?? filter;
    if (FILTERS.has(name)) return call(`filter ${name}`, node.operand, filter.args ?? []);
  }
  return node;
}

function call(name, operand, args) {
  return { type: "CallExpression", callee: { type: "Identifier", value: name }, args: [operand, ...args] };
}

/** The text that a method is called on. */
function method(value) {
  if (typeof value !== "string") throw new Error("a method of text is called on another value");
  return value;
}

/** A value as Python writes it, as far as templates trim it. */
function written(value) {
  if (value === undefined) return "";
  return value === null ? "None" : method(value);
}

function strip(text, characters, left, right) {
  if (typeof (characters ?? "") !== "string") throw new Error("strip takes characters");
  const isDropped = (c) => (characters == null ? SPACE.test(c) : characters.includes(c));
  const all = [...text];
  let [begin, end] = [0, all.length];
  while (left && begin < end && isDropped(all[begin])) begin += 1;
  while (right && begin < end && isDropped(all[end - 1])) end -= 1;
  return all.slice(begin, end).join("");
}

function capitalized(text) {
  const [first = "", ...rest] = text;
  return first.toUpperCase() + rest.join("").toLowerCase();
}

function length(value) {
  if (value instanceof Map) return value.size;
  if (value === null || typeof (value ?? "") === "number") throw new Error("a value has no length");
  return [...(value ?? "")].length;
}

function range(...numbers) {
  const [start, stop, step = 1] = numbers.length > 1 ? numbers : [0, numbers[0]];
  const count = Math.max(0, Math.ceil((stop - start) / step));
  if (!(count <= MOST_ITEMS)) throw new Error(`range makes ${count} items`);
  return Array.from({ length: count }, (_, i) => start + i * step);
}

/** Python's strftime with English names. */
function strftime(date, format) {
  const two = (number) => String(number).padStart(2, "0");
  const [month, day, hour] = [MONTHS[date.getMonth()], DAYS[date.getDay()], date.getHours()];
  const values = {
    ...{ Y: String(date.getFullYear()), y: two(date.getFullYear() % 100) },
    ...{ m: two(date.getMonth() + 1), d: two(date.getDate()) },
    ...{ B: month, b: month.slice(0, 3), A: day, a: day.slice(0, 3), H: two(hour), I: two(hour % 12 || 12) },
    ...{ M: two(date.getMinutes()), S: two(date.getSeconds()), p: hour < 12 ? "AM" : "PM", "%": "%" },
  };
  return format.replace(/%(.?)/gs, (code, letter) => {
    if (!(letter in values)) throw new Error(`strftime_now has no ${code}`);
    return values[letter];
  });
}
