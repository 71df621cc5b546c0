// The page: which conversation is open, and what the buttons do.

import { announce, spoken } from "./announcer.js";
import { Answering } from "./answering.js";
import { Composer } from "./composer.js";
import { addQuestion, isEmpty, newConversation, reopenQuestion } from "./conversation.js";
import { ConversationKeeper } from "./conversation_keeper.js";
import { confirmLoss, SettingsDialog } from "./dialogs.js";
import { ConversationPane } from "./conversation_pane.js";
import { t, translatePage } from "./language.js";
import { Notices } from "./notices.js";
import { preferences } from "./preferences.js";
import { listModels, ServerError } from "./server.js";
import { Sidebar } from "./sidebar.js";
import { troubleWords } from "./trouble.js";

const byId = (id) => document.getElementById(id);

export class App {
  constructor(store) {
    this.models = [];
    this.notices = new Notices(byId("notices"));
    this.keeper = new ConversationKeeper(store, this.notices);
    this.answering = new Answering({
      began: (conversation, column) => this.began(conversation, column),
      grew: (conversation, column, answer) => this.grew(conversation, answer),
      ended: (conversation, column, answer) => this.ended(conversation, answer),
    });
    this.pane = new ConversationPane(byId("columns"), byId("bar-tools"), {
      retry: (column) => this.askAgain(column),
      edit: (column, content) => this.askAgain(column, content),
      changed: () => this.refresh(),
    });
    this.sidebar = new Sidebar(byId("conversations"), {
      open: (id) => this.open(id),
      rename: (id, title) => this.rename(id, title),
      remove: (id, title) => this.remove(id, title),
    });
    this.composer = new Composer(byId("composer"), { send: (text) => this.ask(text), stop: () => this.stop() });
    this.settings = new SettingsDialog({ changed: () => this.settingsChanged(), deleteAll: () => this.deleteAll() });
  }

  async start() {
    this.showLook();
    this.listen();
    this.conversation = newConversation([""]);
    const opened = await this.keeper.load(preferences.opened);
    if (opened) this.conversation = opened;
    this.showConversation();
    await this.loadModels();
    this.composer.focus();
  }

  listen() {
    byId("new-chat").addEventListener("click", () => this.begin(false));
    byId("new-compare").addEventListener("click", () => this.begin(true));
    byId("open-settings").addEventListener("click", () => this.settings.open());
    byId("switch-theme").addEventListener("click", () => this.switchTheme());
    byId("switch-language").addEventListener("click", () => {
      preferences.set({ language: document.documentElement.lang === "en" ? "zh" : "en" });
      this.settingsChanged();
    });
    byId("show-menu").addEventListener("click", () => this.showMenu(true));
    byId("hide-menu").addEventListener("click", () => this.showMenu(false));
    byId("shade").addEventListener("click", () => this.showMenu(false));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing || event.keyCode === 229 || document.querySelector("dialog[open]")) return;
      if (document.body.classList.contains("menu-open")) this.showMenu(false);
      else this.stop();
    });
    addEventListener("pagehide", () => this.keeper.saveNow());
    this.keeper.onchange = (id) => this.changedElsewhere(id);
  }

  // Looks

  showLook() {
    const theme = preferences.get("theme");
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    translatePage();
  }

  settingsChanged() {
    this.showLook();
    this.composer.refresh();
    this.notices.show();
    this.showConversation();
    if (this.models.length === 0) this.loadModels();
  }

  switchTheme() {
    const dark = getComputedStyle(document.documentElement).getPropertyValue("--is-dark").trim() === "1";
    preferences.set({ theme: dark ? "light" : "dark" });
    this.showLook();
  }

  showMenu(open) {
    document.body.classList.toggle("menu-open", open);
    byId("show-menu").setAttribute("aria-expanded", String(open));
    byId("main").inert = open;
    byId(open ? "hide-menu" : "show-menu").focus();
  }

  // Models

  async loadModels() {
    try {
      this.models = await listModels(preferences.key);
      this.notices.clear("models");
      if (this.models.length === 0) this.notices.set("models", () => ({ words: t("noModels"), retry: () => this.loadModels() }));
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      this.models = [];
      this.notices.set("models", () => ({ error: error.details, retry: () => this.loadModels() }));
    }
    if (isEmpty(this.conversation)) this.chooseModels(this.conversation);
    this.showConversation();
  }

  chooseModels(conversation) {
    const preferred = preferences.get("model");
    const first = this.models.includes(preferred) ? preferred : (this.models[0] ?? "");
    const others = this.models.filter((model) => model !== first);
    conversation.columns.forEach((column, index) => {
      column.model = index === 0 ? first : (others[index - 1] ?? "");
    });
  }

  // Conversations

  begin(compare) {
    if (compare && this.models.length < 2) {
      this.notices.set("compare", () => ({ words: t("compareNeedsTwo", { count: this.models.length }) }));
      return;
    }
    const conversation = newConversation(compare ? ["", ""] : [""], compare);
    this.chooseModels(conversation);
    this.enter(conversation);
  }

  async open(id) {
    const conversation = await this.keeper.load(id);
    if (conversation) this.enter(conversation);
    else this.refresh();
  }

  enter(conversation) {
    this.conversation = conversation;
    this.notices.clear("compare");
    if (document.body.classList.contains("menu-open")) this.showMenu(false);
    this.showConversation();
    this.pane.toEnd();
    this.composer.focus();
  }

  async rename(id, title) {
    const conversation = this.conversation.id === id ? this.conversation : await this.keeper.load(id);
    if (conversation && conversation.title !== title) {
      conversation.title = title;
      await this.keeper.save(conversation);
    }
    await this.refresh();
  }

  async remove(id, title) {
    if (!(await confirmLoss(t("confirmDelete", { title }), t("delete")))) return;
    this.answering.stop({ id });
    await this.keeper.delete(id);
    if (this.conversation.id === id) this.begin(false);
    await this.refresh();
    this.composer.focus();
  }

  async deleteAll() {
    const count = (await this.keeper.titles()).length;
    if (!(await confirmLoss(t("confirmDeleteAll", { count }), t("deleteAll")))) return;
    for (const { id } of await this.keeper.titles()) this.answering.stop({ id });
    await this.keeper.clear();
    announce(t("allDeleted"));
    this.begin(false);
    await this.refresh();
  }

  async changedElsewhere(id) {
    if (id === this.conversation.id && !this.answering.isRunning(this.conversation)) {
      const conversation = await this.keeper.load(id);
      if (conversation) this.conversation = conversation;
      else if (!isEmpty(this.conversation)) this.begin(false);
      this.showConversation();
    }
    await this.refresh();
  }

  // Questions and answers

  async ask(text) {
    if (this.models.length === 0) await this.loadModels();
    if (this.models.length === 0) return false;
    const { conversation } = this;
    addQuestion(conversation, text);
    if (!conversation.compare) preferences.set({ model: conversation.columns[0].model });
    this.showConversation();
    for (const column of conversation.columns) this.answering.start(conversation, column);
    this.pane.toEnd();
    return true;
  }

  askAgain(column, content) {
    reopenQuestion(column, content);
    this.showConversation();
    this.answering.start(this.conversation, column);
    this.pane.toEnd();
    this.composer.focus();
    if (this.models.length === 0) this.loadModels(); // a key was given, or the server is back
  }

  stop() {
    this.answering.stop(this.conversation);
  }

  began(conversation, column) {
    this.keeper.hold(conversation);
    this.keeper.save(conversation);
    announce(t("answerBegins", { model: column.model }));
    this.refresh();
  }

  grew(conversation, answer) {
    this.keeper.saveSoon(conversation);
    if (conversation === this.conversation) this.pane.grow(answer);
  }

  ended(conversation, answer) {
    if (!this.answering.isRunning(conversation)) this.keeper.release(conversation);
    this.keeper.save(conversation);
    const ending = answer.error ? troubleWords(answer.error) : "";
    const text = [spoken(answer.content, t("answerContinues")), ending].filter(Boolean).join(" ");
    announce(t("answerDone", { model: answer.model, text }));
    this.refresh();
  }

  // Showing

  showConversation() {
    this.pane.show(this.conversation, this.models);
    this.refresh();
  }

  /** Bring everything up to date that says which conversation this is and what is going on in it. */
  async refresh() {
    this.pane.update();
    preferences.opened = isEmpty(this.conversation) ? "" : this.conversation.id;
    const title = this.conversation.title || t(this.conversation.compare ? "compare" : "newChat");
    byId("title").textContent = title;
    document.title = `${title} · ${t("appTitle")}`;
    this.composer.setAnswering(this.answering.isRunning(this.conversation));
    const titles = await this.keeper.titles();
    byId("no-conversations").hidden = titles.length > 0;
    this.sidebar.show(titles, this.conversation.id, (id) => this.answering.isRunning({ id }));
  }
}
