// The blocks of a Markdown text: paragraphs, headings, lists, tables, quotes and code, as a tree of plain nodes.
//
// What people's models write, not the whole of CommonMark: HTML stays text, a line of dashes is always a rule (never an
// underlined heading, which would turn the line above into one while the answer is coming in), there are no reference
// links, and a line break in a paragraph is a line break on the page.
//
// A block is settled once a complete line of another block follows: no later text changes it. markdown_view.js depends
// on that to render only the end of a growing answer, and a property test holds it.

import { element, parseInline } from "./markdown_inline.js";

const MAX_DEPTH = 12; // quotes and lists in one another; deeper ones are shown as the text they are
const FENCE = /^[ \t]*(`{3,}|~{3,})/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^[ \t]*([-*+]|\d{1,9}[.)])(?:[ \t]|$)/;

/** Parse a text into [{node, offset}], `offset` being where the block begins in the text, in UTF-16 units. */
export function parseBlocks(text) {
  const lines = text.split("\n");
  const starts = [];
  let offset = 0;
  for (const line of lines) {
    starts.push(offset);
    offset += line.length + 1;
  }
  const clean = lines.map((line) => (line.endsWith("\r") ? line.slice(0, -1) : line));
  return parseLines(clean, 0).map(({ node, line }) => ({ node, offset: starts[line] }));
}

function parseLines(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) {
      at += 1;
      continue;
    }
    const [node, next] = parseBlock(lines, at, depth);
    blocks.push({ node, line: at });
    at = next;
  }
  return blocks;
}

function parseBlock(lines, at, depth) {
  const line = lines[at];
  if (isFence(line)) return parseFence(lines, at);
  if (HEADING.test(line)) return [parseHeading(line), at + 1];
  if (isRule(line)) return [element("hr", []), at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return parseQuote(lines, at, depth);
  if (depth < MAX_DEPTH && isItem(line)) return parseList(lines, at, depth);
  if (isTable(lines, at)) return parseTable(lines, at);
  if (indentOf(line) >= 4) return parseIndented(lines, at);
  return parseParagraph(lines, at, depth);
}

function startsBlock(lines, at, depth) {
  const line = lines[at];
  if (isFence(line) || HEADING.test(line) || isRule(line) || isTable(lines, at)) return true;
  return depth < MAX_DEPTH && (QUOTE.test(line) || isItem(line));
}

/** Tell whether a line ends the paragraph above it: "1984. It was" at the start of a line is no list, nor is a lone dash. */
function interrupts(lines, at, depth) {
  if (!startsBlock(lines, at, depth)) return false;
  return !isItem(lines[at]) || /^[ \t]*(?:[-*+]|1[.)])[ \t]+[^ \t]/.test(lines[at]);
}

function parseParagraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && !isBlank(lines[end]) && !interrupts(lines, end, depth)) end += 1;
  const text = lines.slice(at, end).map((line) => line.trimStart());
  return [element("p", parseInline(text.join("\n").trimEnd())), end];
}

function parseHeading(line) {
  const level = HEADING.exec(line)[1].length;
  let text = line.trimStart().slice(level).trim();
  const closing = text.length - text.replace(/^[^]*[^#]/, "").length;
  if (closing === 0 || text[closing - 1] === " ") text = text.slice(0, closing).trimEnd();
  // The page has a heading of its own and one for each message, so those of an answer begin at the third level.
  return element(`h${Math.min(level + 2, 6)}`, parseInline(text), { class: `level-${level}` });
}

function isFence(line) {
  const found = FENCE.exec(line);
  if (!found || indentOf(line) > 3) return false;
  return found[1][0] === "~" || !line.slice(found[0].length).includes("`");
}

function parseFence(lines, at) {
  const indent = indentOf(lines[at]);
  const mark = FENCE.exec(lines[at])[1];
  const info = lines[at].trim().slice(mark.length).trim();
  let end = at + 1;
  while (end < lines.length && !closesFence(lines[end], mark)) end += 1;
  const inside = lines.slice(at + 1, end).map((line) => withoutIndent(line, indent));
  return [codeBlock(inside.join("\n"), info), Math.min(end + 1, lines.length)];
}

function closesFence(line, mark) {
  const text = line.trim();
  return text.length >= mark.length && indentOf(line) <= 3 && text === mark[0].repeat(text.length);
}

function parseIndented(lines, at) {
  let end = at;
  let next = at;
  for (; next < lines.length && (isBlank(lines[next]) || indentOf(lines[next]) >= 4); next += 1) {
    if (!isBlank(lines[next])) end = next + 1;
  }
  return [codeBlock(lines.slice(at, end).map((line) => withoutIndent(line, 4)).join("\n"), ""), end];
}

function codeBlock(text, language) {
  return { tag: "codeblock", attributes: { language }, children: [text] };
}

function parseQuote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inside = lines.slice(at, end).map((line) => line.replace(/^ {0,3}> ?/, ""));
  return [element("blockquote", nodesOf(parseLines(inside, depth + 1))), end];
}

function nodesOf(blocks) {
  return blocks.map(({ node }) => node);
}

function isRule(line) {
  return indentOf(line) <= 3 && /^(?:-{3,}|\*{3,}|_{3,})$/.test(line.replace(/[ \t]/g, ""));
}

function isItem(line) {
  return indentOf(line) <= 3 && ITEM.test(line) && !isRule(line);
}

/** What stands before an item's text: {kind, number, indent of the mark, width up to the text}, in columns. */
function itemMark(line) {
  const mark = ITEM.exec(line)[1];
  const indent = indentOf(line);
  const rest = line.trimStart().slice(mark.length);
  const spaces = isBlank(rest) ? 1 : indentOf(rest);
  const width = indent + mark.length + (spaces > 4 ? 1 : spaces);
  const ordered = mark.length > 1;
  return { kind: ordered ? mark.at(-1) : mark, number: ordered ? Number.parseInt(mark, 10) : null, indent, width };
}

function parseList(lines, at, depth) {
  const first = itemMark(lines[at]);
  const items = [];
  let loose = false;
  let next = at;
  while (next < lines.length && isItem(lines[next])) {
    const mark = itemMark(lines[next]);
    if (mark.kind !== first.kind) break;
    const item = parseItem(lines, next, mark, depth);
    items.push(item.blocks);
    next = item.next;
    loose ||= item.loose || (item.blankAfter && next < lines.length && isItem(lines[next]) && itemMark(lines[next]).kind === first.kind);
  }
  const children = items.map((blocks) => element("li", loose ? blocks : blocks.flatMap(unwrapped)));
  const attributes = first.number !== null && first.number !== 1 ? { start: String(first.number) } : {};
  return [element(first.number === null ? "ul" : "ol", children, attributes), next];
}

function unwrapped(node) {
  return node.tag === "p" ? node.children : [node];
}

function parseItem(lines, at, mark, depth) {
  const inside = [withTask(withoutIndent(blankMark(lines[at], mark), mark.width))];
  let end = at + 1; // after the last line that is not blank
  let next = at + 1;
  for (; next < lines.length; next += 1) {
    const line = lines[next];
    if (isBlank(line)) continue;
    if (!belongsToItem(lines, next, mark, end, depth)) break;
    while (end < next) inside.push(lines[end++]);
    inside.push(withoutIndent(line, mark.width));
    end = next + 1;
  }
  const parsed = parseLines(inside, depth + 1);
  const loose = parsed.some(({ line }, index) => index > 0 && isBlank(inside[line - 1]));
  return { blocks: nodesOf(parsed), next, loose, blankAfter: next > end };
}

function belongsToItem(lines, at, mark, end, depth) {
  const line = lines[at];
  const indent = indentOf(line);
  if (indent >= mark.width) return true;
  // Models indent a nested list by two spaces below "1. ", where CommonMark asks for three.
  if (indent > mark.indent + 1 && ITEM.test(line)) return true;
  return end === at && !startsBlock(lines, at, depth);
}

function blankMark(line, mark) {
  const length = line.length - line.trimStart().length + ITEM.exec(line)[1].length;
  const rest = line.slice(length);
  const column = mark.indent + ITEM.exec(line)[1].length;
  return " ".repeat(column) + rest;
}

function withTask(text) {
  const found = /^\[([ xX])\] /.exec(text);
  return found ? `${found[1] === " " ? "☐" : "☑"} ${text.slice(4)}` : text;
}

function isTable(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !/^[ \t:|-]+$/.test(lines[at + 1])) return false;
  const rule = cellsOf(lines[at + 1]);
  return rule.every((cell) => /^:?-+:?$/.test(cell)) && rule.length === cellsOf(lines[at]).length;
}

function parseTable(lines, at) {
  const sides = cellsOf(lines[at + 1]).map(sideOf);
  let end = at + 2;
  while (end < lines.length && !isBlank(lines[end]) && lines[end].includes("|")) end += 1;
  const row = (line, tag) =>
    element("tr", cellsOf(line).map((cell, column) => element(tag, parseInline(cell), sides[column] ? { class: sides[column] } : {})));
  const body = lines.slice(at + 2, end).map((line) => row(line, "td"));
  const parts = [element("thead", [row(lines[at], "th")])];
  if (body.length) parts.push(element("tbody", body));
  return [element("div", [element("table", parts)], { class: "table" }), end];
}

function sideOf(rule) {
  if (rule.endsWith(":")) return rule.startsWith(":") ? "centre" : "right";
  return "";
}

/** Split a row at the bars that no backslash stands before. */
function cellsOf(line) {
  const parts = line.trim().split("|");
  const cells = [];
  let held = "";
  parts.forEach((part, index) => {
    if (part.endsWith("\\") && index < parts.length - 1) held += `${part.slice(0, -1)}|`;
    else {
      cells.push((held + part).trim());
      held = "";
    }
  });
  if (cells.length > 1 && cells[0] === "") cells.shift();
  if (cells.length > 1 && cells.at(-1) === "") cells.pop();
  return cells;
}

function isBlank(line) {
  return line.trim() === "";
}

/** Count the columns before the text, a tab going to the next multiple of four. */
function indentOf(line) {
  let columns = 0;
  for (const character of line) {
    if (character === " ") columns += 1;
    else if (character === "\t") columns += 4 - (columns % 4);
    else break;
  }
  return columns;
}

/** Take up to `width` columns of white space off; what a tab has too many stays as spaces. */
function withoutIndent(line, width) {
  let columns = 0;
  let at = 0;
  while (columns < width && (line[at] === " " || line[at] === "\t")) {
    columns += line[at] === " " ? 1 : 4 - (columns % 4);
    at += 1;
  }
  return " ".repeat(Math.max(0, columns - width)) + line.slice(at);
}
