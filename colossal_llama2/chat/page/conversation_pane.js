// The open conversation: one column, or the two or three that are compared.

import { isEmpty } from "./conversation.js";
import { icon, make } from "./dom.js";
import { t } from "./language.js";
import { preferences } from "./preferences.js";
import { columnHead, modelChoice, ThreadView } from "./thread_view.js";

const MAX_COLUMNS = 3;

export class ConversationPane {
  /**
   * @param root where the columns stand.
   * @param tools in the bar above: the model of a single chat, or the button for one more column.
   * @param actions {retry(column), edit(column, content), changed()}
   */
  constructor(root, tools, actions) {
    this.root = root;
    this.tools = tools;
    this.actions = actions;
    this.threads = [];
  }

  show(conversation, models) {
    this.conversation = conversation;
    this.models = models;
    const { columns, compare } = conversation;
    const empty = isEmpty(conversation);
    this.threads = columns.map((column, index) => {
      const label = compare ? `${t("column", { number: index + 1 })}: ${column.model}` : t("conversation");
      return new ThreadView(column, label, compare ? this.head(index, empty) : null, this.actions);
    });
    this.root.className = `columns ${compare ? `compare of-${columns.length}` : "single"}${empty ? " empty" : ""}`;
    this.root.replaceChildren(...this.threads.map(({ element }) => element));
    if (empty) this.root.append(make("p", { class: "welcome" }, t(compare ? "compareTitle" : "welcome")));
    this.showTools(empty);
    this.update();
    this.toEnd();
  }

  head(index, empty) {
    const { columns } = this.conversation;
    return columnHead(index + 1, {
      models: this.models,
      model: columns[index].model,
      fixed: !empty,
      choose: (model) => this.choose(index, model),
      remove: columns.length > 2 ? () => this.remove(index) : null,
    });
  }

  showTools(empty) {
    const { columns, compare } = this.conversation;
    this.tools.replaceChildren();
    if (!compare && this.models.length) {
      this.tools.append(
        modelChoice(this.models, columns[0].model, {
          id: "model",
          "aria-label": t("model"),
          onchange: ({ target }) => {
            columns[0].model = target.value;
            preferences.set({ model: target.value });
          },
        }),
      );
    }
    const unused = this.models.filter((model) => !columns.some((column) => column.model === model));
    if (compare && empty && columns.length < MAX_COLUMNS && unused.length) {
      this.tools.append(make("button", { type: "button", class: "plain", onclick: () => this.add(unused[0]) }, icon("plus"), t("addColumn")));
    }
  }

  add(model) {
    this.conversation.columns.push({ model, messages: [] });
    this.showAgain(this.conversation.columns.length - 1);
  }

  remove(index) {
    this.conversation.columns.splice(index, 1);
    this.showAgain(Math.max(0, index - 1));
  }

  /** Give a column another model; the column that had it takes the one that becomes free. */
  choose(index, model) {
    const { columns } = this.conversation;
    const other = columns.find((column) => column.model === model);
    if (other) other.model = columns[index].model;
    columns[index].model = model;
    this.showAgain(index);
  }

  showAgain(focused) {
    this.show(this.conversation, this.models);
    this.threads[focused].element.querySelector("select")?.focus();
    this.actions.changed();
  }

  update() {
    for (const thread of this.threads) thread.update();
  }

  grow(answer) {
    for (const thread of this.threads) thread.grow(answer);
  }

  toEnd() {
    for (const thread of this.threads) thread.toEnd();
  }
}
