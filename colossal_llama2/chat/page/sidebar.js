// The list of conversations: open, rename, delete.

import { icon, iconButton, make } from "./dom.js";
import { t } from "./language.js";

export class Sidebar {
  /** @param actions {open(id), rename(id, title), remove(id, title)} */
  constructor(list, actions) {
    this.list = list;
    this.actions = actions;
    this.renaming = null;
  }

  /**
   * Show the list.
   *
   * @param titles [{id, title, compare}], the latest first.
   * @param current id of the conversation on the page.
   * @param isAnswering (id) whether an answer is coming in there.
   */
  show(titles, current, isAnswering) {
    if (this.renaming) return; // whoever is typing a name keeps the field; the end of it asks for the list again
    const focused = this.list.contains(document.activeElement) ? document.activeElement.dataset.focus : null;
    this.list.replaceChildren(...titles.map((entry) => this.row(entry, entry.id === current, isAnswering(entry.id))));
    if (focused) this.list.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
  }

  row(entry, isCurrent, answering) {
    const title = entry.title || t("untitled");
    const open = make(
      "button",
      { type: "button", class: "open", "aria-current": isCurrent && "true", "data-focus": entry.id, title, onclick: () => this.actions.open(entry.id) },
      entry.compare ? icon("columns") : null,
      make("span", { class: "title", dir: "auto" }, title),
      answering ? make("span", { class: "busy-dot", role: "img", "aria-label": t("answering") }) : null,
    );
    const row = make("li", { class: isCurrent ? "row current" : "row" }, open);
    row.append(
      iconButton("pen", t("renameNamed", { title }), { class: "row-tool", "data-focus": `pen-${entry.id}`, onclick: () => this.rename(row, entry) }),
      iconButton("bin", t("deleteNamed", { title }), { class: "row-tool", "data-focus": `bin-${entry.id}`, onclick: () => this.actions.remove(entry.id, title) }),
    );
    return row;
  }

  rename(row, entry) {
    const field = make("input", { class: "rename", "aria-label": t("rename"), maxlength: 200, dir: "auto" });
    field.value = entry.title;
    this.renaming = field;
    const end = (keep) => {
      if (this.renaming !== field) return;
      this.renaming = null;
      const title = field.value.trim();
      this.actions.rename(entry.id, keep && title ? title : entry.title).then(() => this.focusOn(`pen-${entry.id}`));
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.isComposing && event.keyCode !== 229) end(true);
      if (event.key === "Escape") (event.stopPropagation(), end(false));
    });
    field.addEventListener("blur", () => end(true));
    row.replaceChildren(field);
    field.focus();
    field.select();
  }

  focusOn(name) {
    if (document.activeElement === document.body) this.list.querySelector(`[data-focus="${CSS.escape(name)}"]`)?.focus();
  }
}
