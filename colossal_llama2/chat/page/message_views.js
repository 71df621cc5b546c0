// One question and one answer on the page.

import { isAnswering } from "./conversation.js";
import { copyText } from "./clipboard.js";
import { announce } from "./announcer.js";
import { icon, iconButton, make } from "./dom.js";
import { t } from "./language.js";
import { MarkdownView } from "./markdown_view.js";
import { troublePanel } from "./trouble.js";

const REST = 3; // a slow rendering is followed by a rest this many times as long, so that the page stays usable

/** Copy a text and say on the button, and aloud, whether it worked. */
export async function copyFrom(button, text) {
  const copied = await copyText(text);
  announce(t(copied ? "copied" : "copyFailed"));
  const before = [...button.childNodes];
  if (button.classList.contains("told")) return;
  button.classList.add("told");
  button.replaceChildren(copied ? icon("check") : icon("cross"));
  if (button.classList.contains("copy-code")) button.append(t(copied ? "copied" : "copyCode"));
  setTimeout(() => {
    button.replaceChildren(...before);
    button.classList.remove("told");
  }, 1500);
}

function copyButton(message) {
  return iconButton("copy", t("copyMessage"), { onclick: (event) => copyFrom(event.currentTarget, message.content) });
}

export class QuestionView {
  /** @param actions {edit(content)}, asked for when the person sends other words. */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.body = make("div", { class: "bubble", dir: "auto" }, message.content);
    this.tools = make("div", { class: "tools" });
    this.element = make(
      "article",
      { class: "message question" },
      make("h2", { class: "unseen" }, t("bubbleOfYou")),
      this.body,
      this.tools,
    );
  }

  /** @param place {editable, unanswered}: whether it is the last question, and whether it was passed over. */
  update({ editable, unanswered }) {
    const state = `${editable} ${unanswered}`;
    if (state === this.state) return;
    this.state = state;
    const tools = [copyButton(this.message)];
    if (editable) tools.push(iconButton("pen", t("edit"), { onclick: () => this.edit() }));
    if (unanswered) tools.unshift(make("span", { class: "note" }, t("notSent")));
    this.tools.replaceChildren(...tools);
  }

  edit() {
    const field = make("textarea", { "aria-label": t("edit"), dir: "auto", rows: 3 });
    field.value = this.message.content;
    const send = () => {
      if (field.value.trim()) this.actions.edit(field.value);
    };
    const close = () => {
      form.replaceWith(this.body);
      this.tools.hidden = false;
      this.tools.lastChild.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") (event.stopPropagation(), close());
      if (isSendKey(event)) (event.preventDefault(), send());
    });
    const form = make(
      "div",
      { class: "edit-form" },
      field,
      make("p", { class: "small" }, t("editNote")),
      make("button", { type: "button", class: "plain", onclick: close }, t("cancel")),
      make("button", { type: "button", class: "strong", onclick: send }, t("sendAgain")),
    );
    this.body.replaceWith(form);
    this.tools.hidden = true;
    field.focus();
  }
}

/** Tell whether a key press sends: Enter alone, and not while an input method is composing a word with it. */
export function isSendKey(event) {
  // Safari ends the composition before the key press and marks that press by 229 only.
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

export class AnswerView {
  /** @param actions {retry(), grown()}: ask again; called after the text has grown on the page. */
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.cost = 0;
    this.body = make("div", { class: "markdown", dir: "auto" });
    this.markdown = new MarkdownView(this.body);
    this.foot = make("div", { class: "foot" });
    this.element = make(
      "article",
      { class: "message answer" },
      make("h2", { class: "unseen" }, `${t("answer")}: ${message.model}`),
      this.body,
      this.foot,
    );
  }

  /** Show new text with the next frame, or later where showing it is slow. */
  grow() {
    if (this.pending) return;
    this.pending = true;
    setTimeout(() => requestAnimationFrame(() => this.pending && this.render()), this.cost * REST);
  }

  render() {
    this.pending = false;
    const start = performance.now();
    this.markdown.update(this.message.content);
    this.showFoot();
    this.actions.grown();
    this.cost = performance.now() - start;
  }

  /** @param place {last}: whether it can be asked for again. */
  update({ last }) {
    this.last = last;
    this.render();
  }

  showFoot() {
    const { state, error, finish, dropped, continued, tokens } = this.message;
    const signature = JSON.stringify([state, error, finish, dropped, continued, tokens, this.last]);
    if (signature === this.signature) return;
    this.signature = signature;
    this.element.setAttribute("aria-busy", String(isAnswering(this.message)));
    this.foot.replaceChildren(...this.notes(), ...(this.hasTools() ? [this.toolsRow()] : []));
  }

  notes() {
    const { message } = this;
    const notes = [];
    if (message.state === "waiting") notes.push(make("p", { class: "waiting" }, make("span", { class: "unseen" }, t("answering"))));
    if (message.continued) notes.push(note(t("continued")));
    if (message.dropped) notes.push(note(t("droppedTurns", { count: message.dropped })));
    if (message.state === "stopped") notes.push(note(t("stopped")));
    if (message.finish === "length") notes.push(note(t("lengthReached")));
    if (message.finish === "content_filter") notes.push(note(t("filtered")));
    if (message.state === "done" && !message.content) notes.push(note(t("answerEmpty")));
    if (message.state === "failed") notes.push(troublePanel(message.error, this.last ? this.actions.retry : null));
    return notes;
  }

  hasTools() {
    return !isAnswering(this.message) && (this.message.content !== "" || this.message.state !== "failed");
  }

  toolsRow() {
    const { message } = this;
    const row = make("div", { class: "tools" });
    if (message.content) row.append(copyButton(message));
    if (this.last && message.state !== "failed") row.append(iconButton("retry", t("retryAnswer"), { onclick: this.actions.retry }));
    const counted = message.tokens ? ` · ${t("sentTokens", { count: message.tokens })}` : "";
    row.append(make("span", { class: "meta" }, message.model + counted));
    return row;
  }
}

function note(text) {
  return make("p", { class: "note" }, text);
}
