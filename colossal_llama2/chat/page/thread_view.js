// One column of a conversation: its messages, followed to their end.

import { isAnswering, isUnanswered } from "./conversation.js";
import { icon, iconButton, make } from "./dom.js";
import { FollowEnd } from "./follow_end.js";
import { t } from "./language.js";
import { AnswerView, copyFrom, QuestionView } from "./message_views.js";

export class ThreadView {
  /**
   * @param column of the conversation.
   * @param label what a screen reader calls the column.
   * @param head element above the messages, or null.
   * @param actions {retry(column), edit(column, content)}
   */
  constructor(column, label, head, actions) {
    this.column = column;
    this.actions = actions;
    this.views = new Map();
    this.list = make("div", { class: "messages" });
    this.scroller = make("div", { class: "scroller", tabindex: 0, role: "region", "aria-label": label }, this.list);
    const toEnd = make("button", { type: "button", class: "to-end", hidden: true, "aria-label": t("toLatest") }, icon("down"));
    this.element = make("div", { class: "column" }, head, this.scroller, toEnd);
    this.following = new FollowEnd(this.scroller, toEnd);
    this.list.addEventListener("click", ({ target }) => {
      const button = target.closest('[data-action="copy-code"]');
      if (button) copyFrom(button, button.closest("figure").querySelector("code").textContent);
    });
  }

  /** Bring the list up to date with the column's messages. */
  update() {
    const { messages } = this.column;
    for (const [message, view] of this.views) {
      if (messages.includes(message)) continue;
      view.element.remove();
      this.views.delete(message);
    }
    const lastQuestion = messages.findLastIndex(({ role }) => role === "user");
    const answering = messages.some(isAnswering);
    messages.forEach((message, index) => {
      const view = this.viewOf(message);
      if (message.role === "user") {
        view.update({ editable: index === lastQuestion && !answering, unanswered: isUnanswered(messages, index) });
      } else view.update({ last: index === messages.length - 1 });
    });
    this.following.grown();
  }

  viewOf(message) {
    if (this.views.has(message)) return this.views.get(message);
    const view =
      message.role === "user"
        ? new QuestionView(message, { edit: (content) => this.actions.edit(this.column, content) })
        : new AnswerView(message, {
            retry: () => this.actions.retry(this.column),
            grown: () => this.following.grown(),
          });
    this.views.set(message, view);
    this.list.append(view.element);
    return view;
  }

  grow(message) {
    this.views.get(message)?.grow();
  }

  toEnd() {
    this.following.toEnd();
  }
}

/** Build a choice among the models; one that is not offered any more stays in it, and the server will say so. */
export function modelChoice(models, chosen, attributes) {
  const names = models.includes(chosen) || !chosen ? models : [...models, chosen];
  const options = names.map((name) => make("option", { value: name, selected: name === chosen }, name));
  return make("select", attributes, ...options);
}

/** Build the head of a column that is compared: the choice of its model while nothing has been asked, then its name. */
export function columnHead(number, { models, model, fixed, choose, remove }) {
  const head = make("div", { class: "column-head" });
  if (fixed) head.append(make("h2", {}, model));
  else {
    head.append(
      modelChoice(models, model, {
        "aria-label": t("modelOfColumn", { number }),
        onchange: (event) => choose(event.target.value),
      }),
    );
    if (remove) head.append(iconButton("cross", t("removeColumn", { number }), { onclick: remove }));
  }
  return head;
}
