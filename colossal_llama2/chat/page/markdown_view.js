// A growing Markdown text on the page: only its end is parsed and rendered again.
//
// The one place where an answer becomes DOM. Elements are created by name out of a closed list and text is set as text,
// so nothing in an answer can become a tag, an attribute, a style or a script.

import { make } from "./dom.js";
import { t } from "./language.js";
import { parseBlocks } from "./markdown_blocks.js";

const TAGS = new Set(
  "a blockquote br code del div em h1 h2 h3 h4 h5 h6 hr li ol p strong table tbody td th thead tr ul".split(" "),
);
const ATTRIBUTES = new Set(["class", "href", "start", "title"]);

export class MarkdownView {
  /** @param {HTMLElement} root where the text is shown; everything in it belongs to this view. */
  constructor(root) {
    this.root = root;
    this.clear();
  }

  clear() {
    this.root.replaceChildren();
    this.settledText = "";
    this.settledCount = 0;
  }

  /** Show `text`. When it begins with what was shown before, what is settled of that is left alone. */
  update(text) {
    if (!text.startsWith(this.settledText)) this.clear();
    this.settle(text);
    const blocks = parseBlocks(text.slice(this.settledText.length));
    this.render(blocks);
    removeAfter(this.root, this.settledCount + blocks.length);
  }

  /** Render for good the blocks that complete lines of another block follow. */
  settle(text) {
    const start = this.settledText.length;
    const complete = text.slice(start, text.lastIndexOf("\n") + 1);
    const blocks = parseBlocks(complete);
    if (blocks.length < 2) return;
    const last = blocks.pop();
    this.render(blocks);
    this.settledCount += blocks.length;
    this.settledText = text.slice(0, start + last.offset);
  }

  render(blocks) {
    const nodes = blocks.map(({ node }) => node);
    reconcile(this.root, nodes, this.settledCount);
  }
}

/** Make the children of `parent` from number `from` on show `nodes`, changing what differs and nothing else. */
function reconcile(parent, nodes, from = 0) {
  nodes.forEach((node, index) => {
    const old = parent.childNodes[from + index];
    if (old && isAlike(old, node)) patch(old, node);
    else if (old) old.replaceWith(create(node));
    else parent.append(create(node));
  });
}

function removeAfter(parent, count) {
  while (parent.childNodes.length > count) parent.lastChild.remove();
}

function isAlike(old, node) {
  if (typeof node === "string") return old.nodeType === Node.TEXT_NODE;
  if (old.nodeType !== Node.ELEMENT_NODE) return false;
  if (node.tag === "codeblock") return old.classList.contains("codeblock") && old.dataset.language === node.attributes.language;
  if (old.localName !== node.tag) return false;
  return [...ATTRIBUTES].every((name) => old.getAttribute(name) === (node.attributes[name] || null));
}

/** Bring what stands on the page up to date; a selection in it and the place it is scrolled to stay. */
function patch(old, node) {
  if (typeof node === "string") setText(old, node);
  else if (node.tag === "codeblock") setText(old.querySelector("code").firstChild, node.children[0]);
  else {
    reconcile(old, node.children);
    removeAfter(old, node.children.length);
  }
}

function setText(old, text) {
  if (old.data === text) return;
  if (text.startsWith(old.data)) old.appendData(text.slice(old.data.length));
  else old.data = text;
}

function create(node) {
  if (typeof node === "string") return document.createTextNode(node);
  if (node.tag === "codeblock") return createCodeBlock(node);
  if (!TAGS.has(node.tag)) throw new Error(`no element <${node.tag}> in an answer`);
  const created = document.createElement(node.tag);
  for (const [name, value] of Object.entries(node.attributes)) {
    if (!ATTRIBUTES.has(name)) throw new Error(`no attribute ${name} in an answer`);
    if (value) created.setAttribute(name, value);
  }
  if (node.tag === "a") {
    created.rel = "noopener noreferrer";
    created.target = "_blank";
  }
  if (node.attributes.class === "table") makeScrollable(created, t("table"));
  for (const child of node.children) created.append(create(child));
  return created;
}

function createCodeBlock({ attributes: { language }, children: [text] }) {
  const code = make("code", {}, document.createTextNode(text));
  const pre = make("pre", {}, code);
  makeScrollable(pre, t("codeIn", { language: language || t("plainText") }));
  return make(
    "figure",
    { class: "codeblock", "data-language": language },
    make(
      "figcaption",
      {},
      make("span", { class: "code-language" }, language || t("plainText")),
      make("button", { type: "button", class: "copy-code", "data-action": "copy-code" }, t("copyCode")),
    ),
    pre,
  );
}

/** Let the keyboard reach what may be wider than the page, and say what it is. */
function makeScrollable(node, label) {
  node.tabIndex = 0;
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", label);
}
