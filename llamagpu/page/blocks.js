// Markdown's blocks: finds them in lines of text. A block is decided by the lines up to the next block's first line, so
// that text which grows at its end changes the last blocks only.

const FENCE = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITERS = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const DEEPEST = 8; // lists and quotes within each other; what is deeper is a paragraph

/**
 * @typedef {{type: string, start: number, end: number}} Block with the lines [start, end) and, by type:
 *   code {language, text}; heading {level, text}; rule; quote {blocks}; list {ordered, first, items: Block[][]};
 *   table {alignments, head, rows}; paragraph {text}
 */

/** @param {string[]} lines @returns {Block[]} */
export function parseBlocks(lines) {
  return nestedBlocks(expandTabs(lines), 0);
}

/** Indentation in spaces. Code keeps its tabs: some languages need them. */
function expandTabs(lines) {
  let code = false;
  return lines.map((line) => {
    const mark = /^\s*(?:[-*+]\s+|\d+[.)]\s+)?(?:```|~~~)/.test(line);
    const expanded = code && !mark ? line : line.replace(/^[ \t]+/, (space) => space.replaceAll("\t", "    "));
    if (mark) code = !code;
    return expanded;
  });
}

function nestedBlocks(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) at++;
    else {
      const block = nextBlock(lines, at, depth);
      blocks.push(block);
      at = block.end;
    }
  }
  return blocks;
}

function nextBlock(lines, start, depth) {
  const line = lines[start];
  if (FENCE.test(line)) return fence(lines, start);
  if (HEADING.test(line)) return heading(line, start);
  if (RULE.test(line)) return { type: "rule", start, end: start + 1 };
  if (depth < DEEPEST && QUOTE.test(line)) return quote(lines, start, depth);
  if (depth < DEEPEST && ITEM.test(line)) return list(lines, start, depth);
  if (isTable(lines, start)) return table(lines, start);
  return paragraph(lines, start, depth);
}

function fence(lines, start) {
  const [, indent, mark, info] = FENCE.exec(lines[start]);
  let end = start + 1;
  while (end < lines.length && !closesFence(lines[end], mark)) end++;
  const content = lines.slice(start + 1, end).map((line) => dedent(line, indent.length));
  const language = info.trim().split(/\s/)[0].slice(0, 40);
  return { type: "code", language, text: content.join("\n"), start, end: Math.min(end + 1, lines.length) };
}

function closesFence(line, mark) {
  const text = line.trim();
  return text.length >= mark.length && text[0] === mark[0] && text === mark[0].repeat(text.length);
}

function heading(line, start) {
  const text = line.trim();
  const level = HEADING.exec(line)[1].length;
  const bare = text.slice(level).trim();
  const unclosed = bare.replace(/#{1,100}$/, "");
  const closed = unclosed === "" || unclosed.endsWith(" ");
  return { type: "heading", level, text: closed ? unclosed.trim() : bare, start, end: start + 1 };
}

function quote(lines, start, depth) {
  let end = start;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inner = lines.slice(start, end).map((line) => line.replace(QUOTE, ""));
  return { type: "quote", blocks: nestedBlocks(inner, depth + 1), start, end };
}

const isOrdered = (marker) => /\d/.test(marker);
const indentOf = (line) => line.length - line.trimStart().length;
const dedent = (line, width) => line.slice(Math.min(width, indentOf(line)));

function list(lines, start, depth) {
  const [, indent, marker] = ITEM.exec(lines[start]);
  const ordered = isOrdered(marker);
  const kind = ordered ? marker.at(-1) : "-"; // "1." and "1)" are two lists; models mix "-" and "*" in one
  const items = [];
  let at = start;
  while (at < lines.length && continuesList(lines[at], indent.length, kind)) {
    const end = endOfItem(lines, at, indent.length, depth);
    items.push(nestedBlocks(itemLines(lines, at, end), depth + 1));
    at = end;
    const next = skipBlank(lines, at);
    if (next < lines.length && continuesList(lines[next], indent.length, kind)) at = next;
  }
  return { type: "list", ordered, first: ordered ? parseInt(marker, 10) : 1, items, start, end: at };
}

function continuesList(line, indent, kind) {
  const found = ITEM.exec(line);
  if (!found || RULE.test(line) || found[1].length >= indent + 2) return false;
  return kind === (isOrdered(found[2]) ? found[2].at(-1) : "-");
}

/** An item goes on with indented lines, and with lines that continue its paragraph. */
function endOfItem(lines, start, indent, depth) {
  let end = start + 1;
  while (end < lines.length) {
    const next = skipBlank(lines, end);
    if (next === lines.length) break;
    const inside = indentOf(lines[next]) >= indent + 2;
    const lazy = next === end && !ITEM.test(lines[next]) && !startsBlock(lines, next, depth);
    if (!inside && !lazy) break;
    end = next + 1;
  }
  return end;
}

function itemLines(lines, start, end) {
  const [mark, , , gap] = ITEM.exec(lines[start]);
  const width = mark.length - Math.max(gap.length - 4, 0); // more than four spaces belong to the text
  const first = lines[start].slice(width);
  return [first, ...lines.slice(start + 1, end).map((line) => dedent(line, width))];
}

function skipBlank(lines, at) {
  while (at < lines.length && !lines[at].trim()) at++;
  return at;
}

function isTable(lines, at) {
  const next = lines[at + 1];
  if (!next || !lines[at].includes("|") || !DELIMITERS.test(next)) return false;
  return cells(lines[at]).length === cells(next).length;
}

function table(lines, start) {
  const head = cells(lines[start]);
  const alignments = cells(lines[start + 1]).map((cell) => {
    if (!cell.endsWith(":")) return null;
    return cell.startsWith(":") ? "center" : "right";
  });
  let end = start + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  const rows = lines.slice(start + 2, end).map((line) => head.map((_, i) => cells(line)[i] ?? ""));
  return { type: "table", alignments, head, rows, start, end };
}

/** Cells between bars; a bar after a backslash or in code belongs to the cell. */
function cells(line) {
  const found = [];
  let cell = "";
  let code = false;
  for (const char of line.trim().replace(/^\|/, "")) {
    if (char === "`") code = !code;
    if (char === "|" && !code && !cell.endsWith("\\")) {
      found.push(cell.trim());
      cell = "";
    } else if (char === "|" && cell.endsWith("\\")) cell = cell.slice(0, -1) + char;
    else cell += char;
  }
  if (cell.trim()) found.push(cell.trim());
  return found;
}

function paragraph(lines, start, depth) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() && !startsBlock(lines, end, depth)) end++;
  const text = lines.slice(start, end).map((line) => line.trimStart()).join("\n").trimEnd();
  return { type: "paragraph", text, start, end };
}

/** Whether a line ends a paragraph before it. */
function startsBlock(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line) || isTable(lines, at)) return true;
  if (depth >= DEEPEST) return false;
  const item = ITEM.exec(line);
  return QUOTE.test(line) || Boolean(item && item[3] && (!isOrdered(item[2]) || /^\d{1,2}[.)]$/.test(item[2])));
}
