// What the person has to know apart from any answer: no models, no room, no key. It stands above the question.

import { announce } from "./announcer.js";
import { make } from "./dom.js";
import { troublePanel, troubleWords } from "./trouble.js";

export class Notices {
  constructor(root) {
    this.root = root;
    this.kept = new Map();
  }

  /** @param build makes {words} or {error, retry} anew, so that a notice changes its language with the page. */
  set(name, build) {
    if (!this.kept.has(name)) {
      const { words, error } = build();
      announce(words ?? troubleWords(error));
    }
    this.kept.set(name, build);
    this.show();
  }

  clear(name) {
    if (this.kept.delete(name)) this.show();
  }

  show() {
    this.root.replaceChildren(
      ...[...this.kept.values()].map((build) => {
        const { words, error, retry } = build();
        return error ? troublePanel(error, retry) : make("div", { class: "trouble" }, make("p", {}, words));
      }),
    );
  }
}
