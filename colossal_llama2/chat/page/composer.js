// The box the question is written in. One button sends, and stops while an answer is coming in.

import { icon } from "./dom.js";
import { t } from "./language.js";
import { isSendKey } from "./message_views.js";

export class Composer {
  /** @param actions {send(text) -> whether it was taken, stop()} */
  constructor(form, actions) {
    this.field = form.querySelector("textarea");
    this.button = form.querySelector("button");
    this.actions = actions;
    this.answering = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.answering) this.actions.stop();
      else this.send();
    });
    this.field.addEventListener("keydown", (event) => {
      if (!isSendKey(event)) return;
      event.preventDefault();
      if (!this.answering) this.send();
    });
    this.field.addEventListener("input", () => this.refresh());
    this.refresh();
  }

  async send() {
    const text = this.field.value;
    if (!text.trim()) return;
    if (await this.actions.send(text)) this.field.value = "";
    this.refresh();
  }

  setAnswering(answering) {
    this.answering = answering;
    this.refresh();
  }

  refresh() {
    const name = this.answering ? "stop" : "send";
    if (this.button.dataset.shows !== name) this.button.replaceChildren(icon(name));
    this.button.dataset.shows = name;
    this.button.setAttribute("aria-label", t(name));
    this.button.title = t(name);
    this.button.disabled = !this.answering && !this.field.value.trim();
    this.fit();
  }

  /** Grow with the text; style.css ends the growth. */
  fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }

  focus() {
    // On a phone the keyboard would cover the conversation before anyone has asked for it.
    if (!matchMedia("(hover: none)").matches) this.field.focus();
  }
}
