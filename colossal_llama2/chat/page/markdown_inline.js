// The inside of a Markdown paragraph: code, emphasis, links and line breaks, in one pass over the text.
//
// The result is a list of nodes: a string, or {tag, attributes, children}. Text is never turned into HTML anywhere.
// Every loop is linear in the text and nesting is bounded, because a model may answer with 100,000 asterisks.

import { safeLink } from "./safe_link.js";

const MAX_OPEN = 50; // marks that may stand open at once, and so the depth of the tree
const SPECIAL = /[\\`*_~[\]!<&\n]|https?:\/\//g;
const ESCAPED = /[!"#$%&'*+,\-./:;<=>?@\\^_`{|}~]/; // without ( ) [ ]: \( and \[ are more often a formula than an escape
const ENTITY = /&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(amp|lt|gt|quot|apos|nbsp));/y;
const NAMED = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const BARE_ADDRESS = /https?:\/\/[^\s<>"`[\]*|，。；：！？、（）「」『』【】《》“”‘’]{1,2048}/y;
const POINTED = /<(?:(br ?\/?)|((?:https?:\/\/|mailto:)[^\s<>]{1,2048})|([\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}))>/iy;
const TARGET =
  /\([ \n]{0,8}(?:<([^<>\n]{0,2048})>|([^\s()<>]{0,2048}(?:\([^\s()]{0,512}\)[^\s()]{0,512}){0,8}))(?:[ \n]{1,8}"([^"]{0,512})")?[ \n]{0,8}\)/y;
const WORD = /[\p{L}\p{N}_]/u;

export function element(tag, children, attributes = {}) {
  return { tag, attributes, children };
}

/** Parse the text of one paragraph, heading or cell. */
export function parseInline(text) {
  return new Inline(text).parse();
}

class Inline {
  constructor(text) {
    this.text = text;
    this.at = 0;
    // A frame is a mark that was opened: its character, how many of them, and what has come since. The first is the root.
    this.frames = [{ mark: "", count: 0, nodes: [] }];
    this.ticks = null;
  }

  parse() {
    const { text } = this;
    while (this.at < text.length) {
      SPECIAL.lastIndex = this.at;
      const found = SPECIAL.exec(text);
      const end = found ? found.index : text.length;
      this.put(text.slice(this.at, end));
      this.at = end;
      if (found) this.special(text[end]);
    }
    this.foldDownTo(0);
    return this.frames[0].nodes;
  }

  special(character) {
    if (character === "\\") this.backslash();
    else if (character === "`") this.code();
    else if (character === "*" || character === "_" || character === "~") this.emphasis(character);
    else if (character === "[") this.open("[", 1);
    else if (character === "!") this.image();
    else if (character === "]") this.closeBracket();
    else if (character === "<") this.pointed();
    else if (character === "&") this.entity();
    else if (character === "\n") this.lineBreak();
    else this.bareAddress();
  }

  get top() {
    return this.frames[this.frames.length - 1];
  }

  put(node) {
    const { nodes } = this.top;
    if (node === "") return;
    if (typeof node === "string" && typeof nodes[nodes.length - 1] === "string") nodes[nodes.length - 1] += node;
    else nodes.push(node);
  }

  literal(length = 1) {
    this.put(this.text.slice(this.at, this.at + length));
    this.at += length;
  }

  matchHere(pattern) {
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  open(mark, count) {
    this.at += count;
    if (this.frames.length > MAX_OPEN) this.foldOldest();
    this.frames.push({ mark, count, nodes: [] });
  }

  /** Turn the open marks above `index` back into text. */
  foldDownTo(index) {
    while (this.frames.length - 1 > index) {
      const frame = this.frames.pop();
      this.put(literalOf(frame));
      for (const node of frame.nodes) this.put(node);
    }
  }

  foldOldest() {
    const [root, oldest] = this.frames;
    const kept = this.frames.slice(2);
    this.frames = [root];
    this.put(literalOf(oldest));
    for (const node of oldest.nodes) this.put(node);
    this.frames.push(...kept);
  }

  backslash() {
    const next = this.text[this.at + 1];
    if (next === "\n") {
      this.at += 1;
      this.lineBreak();
    } else if (next !== undefined && ESCAPED.test(next)) {
      this.put(next);
      this.at += 2;
    } else this.literal();
  }

  code() {
    const length = runLength(this.text, this.at, "`");
    const close = this.closingTicks(length);
    if (close === undefined) return this.literal(length);
    let inside = this.text.slice(this.at + length, close).replaceAll("\n", " ");
    if (inside[0] === " " && inside.at(-1) === " " && inside.trim() !== "") inside = inside.slice(1, -1);
    this.put(element("code", [inside]));
    this.at = close + length;
  }

  /** Find where the next run of exactly `length` backticks begins; the runs are looked up once per text. */
  closingTicks(length) {
    if (this.ticks === null) {
      this.ticks = new Map();
      for (const run of this.text.matchAll(/`+/g)) {
        if (!this.ticks.has(run[0].length)) this.ticks.set(run[0].length, { places: [], next: 0 });
        this.ticks.get(run[0].length).places.push(run.index);
      }
    }
    const runs = this.ticks.get(length);
    if (runs === undefined) return undefined;
    while (runs.places[runs.next] <= this.at) runs.next += 1;
    return runs.places[runs.next];
  }

  emphasis(mark) {
    let count = runLength(this.text, this.at, mark);
    const before = lastCharacter(this.text, this.at);
    const after = String.fromCodePoint(this.text.codePointAt(this.at + count) ?? 32);
    // ____ is a blank to fill in, and 50,000 asterisks on both sides of a word are no tree 25,000 deep.
    if (count > 3 || (mark === "~" && count !== 2)) return this.literal(count);
    // Chinese text sets **“quoted”**text without spaces, so punctuation does not matter here, only spaces do.
    const opens = !/\s/.test(after) && (mark !== "_" || !WORD.test(before));
    const closes = !/\s/.test(before) && (mark !== "_" || !WORD.test(after));
    this.at += count;
    if (closes) count = this.close(mark, count);
    this.at -= count;
    if (count > 0 && opens) this.open(mark, count);
    else if (count > 0) this.literal(count);
  }

  /** Close what marks of this kind have opened and return how many of the `count` marks are left over. */
  close(mark, count) {
    while (count > 0) {
      const index = this.frames.findLastIndex((frame) => frame.mark === mark);
      if (index < 0) return count;
      this.foldDownTo(index);
      const frame = this.frames[index];
      const used = Math.min(count, frame.count, 2);
      const tag = mark === "~" ? "del" : used === 2 ? "strong" : "em";
      frame.nodes = [element(tag, frame.nodes)];
      frame.count -= used;
      count -= used;
      if (frame.count === 0) {
        this.frames.pop();
        this.put(frame.nodes[0]);
      }
    }
    return 0;
  }

  image() {
    if (this.text[this.at + 1] === "[") this.open("![", 2);
    else this.literal();
  }

  closeBracket() {
    const index = this.frames.findLastIndex((frame) => frame.mark === "[" || frame.mark === "![");
    this.at += 1;
    if (index < 0) return this.put("]");
    this.foldDownTo(index);
    const target = this.matchHere(TARGET);
    const address = target && safeLink(decodeEntities(target[1] ?? target[2]));
    if (!address) {
      this.foldDownTo(index - 1);
      return this.put("]");
    }
    const frame = this.frames.pop();
    this.at += target[0].length;
    // A picture is shown as a link: nothing is loaded from elsewhere because a model has said so.
    const inside = withoutLinks(frame.nodes);
    this.put(link(address, inside.length ? inside : [address], target[3]));
  }

  pointed() {
    const found = this.matchHere(POINTED);
    const address = found && safeLink(found[2] ?? `mailto:${found[3]}`);
    if (!found || (!found[1] && !address)) return this.literal();
    this.put(found[1] ? element("br", []) : link(address, [found[2] ?? found[3]]));
    this.at += found[0].length;
  }

  entity() {
    const found = this.matchHere(ENTITY);
    if (!found) return this.literal();
    this.put(decodeEntity(found));
    this.at += found[0].length;
  }

  lineBreak() {
    const { nodes } = this.top;
    const last = nodes.length - 1;
    if (typeof nodes[last] === "string") nodes[last] = nodes[last].trimEnd();
    this.put(element("br", []));
    this.at += 1;
    while (this.text[this.at] === " " || this.text[this.at] === "\t") this.at += 1;
  }

  bareAddress() {
    const found = this.matchHere(BARE_ADDRESS);
    if (!found || WORD.test(lastCharacter(this.text, this.at))) return this.literal();
    const shown = withoutClosingMarks(found[0]);
    const address = safeLink(decodeEntities(shown));
    if (!address) return this.literal();
    this.put(link(address, [shown]));
    this.at += shown.length;
  }
}

function literalOf(frame) {
  return frame.mark.length === 1 ? frame.mark.repeat(frame.count) : frame.mark;
}

function link(address, children, title) {
  return element("a", children, title ? { href: address, title } : { href: address });
}

/** Take links out of what a link shows, for a link holds no links. */
function withoutLinks(nodes) {
  return nodes.flatMap((node) => {
    if (typeof node === "string") return [node];
    const children = withoutLinks(node.children);
    return node.tag === "a" ? children : [{ ...node, children }];
  });
}

function runLength(text, at, character) {
  let end = at;
  while (text[end] === character) end += 1;
  return end - at;
}

function lastCharacter(text, at) {
  if (at === 0) return " ";
  const low = text.charCodeAt(at - 1);
  const paired = at > 1 && low >= 0xdc00 && low <= 0xdfff;
  return text.slice(at - (paired ? 2 : 1), at);
}

/** Leave out the full stop or bracket that ends the sentence and not the address. */
function withoutClosingMarks(address) {
  let end = address.length;
  let open = address.split("(").length - address.split(")").length;
  for (; end > 0; end -= 1) {
    const last = address[end - 1];
    if (last === ")" && open < 0) open += 1;
    else if (!".,;:!?'_~".includes(last)) break;
  }
  return address.slice(0, end);
}

function decodeEntity([, decimal, hexadecimal, name]) {
  if (name) return NAMED[name];
  const code = decimal ? Number.parseInt(decimal, 10) : Number.parseInt(hexadecimal, 16);
  const isCharacter = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff);
  return isCharacter ? String.fromCodePoint(code) : "\ufffd";
}

function decodeEntities(text) {
  return text.replace(new RegExp(ENTITY.source, "g"), (...found) => decodeEntity(found));
}
