// The language the page speaks, and its words.

import { preferences } from "./preferences.js";
import { TEXTS } from "./texts.js";

/** The language in use: what was chosen, else Chinese for a browser that prefers it, else English. */
export function language() {
  const chosen = preferences.get("language");
  if (chosen in TEXTS) return chosen;
  const preferred = navigator.languages ?? [navigator.language];
  return preferred.map((tag) => tag.toLowerCase().split("-")[0]).find((tag) => tag in TEXTS) ?? "en";
}

/** Return the words for `key` with its {places} filled in. */
export function t(key, values = {}) {
  const text = TEXTS[language()][key];
  if (text === undefined) throw new Error(`no text named ${key}`);
  return text.replace(/\{(\w+)\}/g, (place, name) => (name in values ? String(values[name]) : place));
}

/** Put the words into what stands in index.html: data-text, data-label (with a tooltip) and data-placeholder. */
export function translatePage(root = document) {
  document.documentElement.lang = language() === "zh" ? "zh-CN" : "en";
  for (const node of root.querySelectorAll("[data-text]")) node.textContent = t(node.dataset.text);
  for (const node of root.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", t(node.dataset.label));
    if (node.localName === "button") node.title = t(node.dataset.label);
  }
  for (const node of root.querySelectorAll("[data-placeholder]")) node.placeholder = t(node.dataset.placeholder);
}
