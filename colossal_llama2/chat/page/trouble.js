// What went wrong, in words, where it went wrong, with what can be done about it.

import { make } from "./dom.js";
import { t } from "./language.js";
import { preferences } from "./preferences.js";

/** Say what an error of the server (ServerError.details) means. */
export function troubleWords(error) {
  const { kind, message = "", status = "", seconds } = error;
  if (kind === "key") return t(preferences.key ? "keyWrong" : "keyMissing");
  if (kind === "busy") return seconds ? t("busySeconds", { seconds }) : t("busy");
  if (kind === "refused") return t("refused", { message });
  if (kind === "broken") return t("serverBroken", { message, status });
  if (kind === "garbled") return t("garbled", { message });
  return t(kind); // unreachable, lost, unfinished: sentences of their own
}

/** Build the panel for an error: its words, a field where a key is asked for, and a button that tries again. */
export function troublePanel(error, retry) {
  const panel = make("div", { class: "trouble" }, make("p", {}, troubleWords(error)));
  if (error.kind === "key") panel.append(keyForm(retry));
  else if (retry) panel.append(make("button", { type: "button", class: "plain", onclick: retry }, t("retry")));
  return panel;
}

function keyForm(retry) {
  const field = make("input", { type: "password", autocomplete: "off", spellcheck: "false", "aria-label": t("key") });
  const use = () => {
    preferences.key = field.value;
    retry?.();
  };
  const form = make(
    "form",
    { class: "key-form", onsubmit: (event) => (event.preventDefault(), use()) },
    field,
    make("button", { type: "submit", class: "strong" }, t("useKey")),
  );
  return make("div", {}, form, make("p", { class: "small" }, t("keyHint")));
}
