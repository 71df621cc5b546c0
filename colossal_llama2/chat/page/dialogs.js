// The two dialogs: settings, and the question whether to delete.

import { t } from "./language.js";
import { preferences } from "./preferences.js";

const NUMBERS = {
  temperature: { low: 0, high: 2 },
  topP: { low: 0, high: 1 },
  maxTokens: { low: 1, high: 1000000, integer: true },
  seed: { low: 0, high: 2147483647, integer: true },
};

/** Ask before something is lost for good; resolves to whether it may be. */
export function confirmLoss(question, button) {
  const dialog = document.getElementById("confirm");
  dialog.querySelector("p").textContent = question;
  dialog.querySelector("[value=yes]").textContent = button;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

export class SettingsDialog {
  /** @param actions {changed(), deleteAll()} */
  constructor(actions) {
    this.dialog = document.getElementById("settings");
    this.form = this.dialog.querySelector("form");
    this.actions = actions;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.save()) this.dialog.close();
    });
    this.dialog.querySelector("#settings-close").addEventListener("click", () => this.dialog.close());
    this.dialog.querySelector("#delete-all").addEventListener("click", () => {
      this.dialog.close();
      this.actions.deleteAll();
    });
  }

  open() {
    for (const name of ["language", "theme", "system"]) this.form.elements[name].value = preferences.get(name);
    for (const name of Object.keys(NUMBERS)) {
      this.form.elements[name].value = preferences.get(name) ?? "";
      this.showProblem(name, "");
    }
    this.form.elements.key.value = preferences.key;
    this.dialog.showModal();
  }

  /** Keep what was entered if all of it is sound; else say beside each field what is not. */
  save() {
    const changes = {};
    for (const name of ["language", "theme", "system"]) changes[name] = this.form.elements[name].value;
    const wrong = [];
    for (const [name, range] of Object.entries(NUMBERS)) {
      const value = readNumber(this.form.elements[name].value, range);
      this.showProblem(name, value === undefined ? t(range.integer ? "invalidInteger" : "invalidNumber", range) : "");
      if (value === undefined) wrong.push(name);
      else changes[name] = value;
    }
    if (wrong.length) {
      this.form.elements[wrong[0]].focus();
      return false;
    }
    preferences.set(changes);
    preferences.key = this.form.elements.key.value;
    this.actions.changed();
    return true;
  }

  showProblem(name, problem) {
    const field = this.form.elements[name];
    field.setAttribute("aria-invalid", String(problem !== ""));
    document.getElementById(`${field.id}-problem`).textContent = problem;
  }
}

/** Return the number, null for an empty field, undefined for what is neither. */
function readNumber(text, { low, high, integer }) {
  const clean = text.trim().replace(",", ".");
  if (clean === "") return null;
  const value = Number(clean);
  if (!Number.isFinite(value) || value < low || value > high) return undefined;
  return integer && !Number.isInteger(value) ? undefined : value;
}
