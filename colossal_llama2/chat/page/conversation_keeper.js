// Saving while answers grow, and telling when the browser does not keep what it is given.

import { closeUnfinished } from "./conversation.js";
import { t } from "./language.js";

const PAUSE = 500; // milliseconds between two savings of a growing answer
const SILENCE = 5000; // milliseconds after which another tab is no longer believed to be receiving an answer

export class ConversationKeeper {
  constructor(store, notices) {
    this.store = store;
    this.notices = notices;
    this.held = new Map(); // conversations with an answer coming in: what is in memory is newer than what is stored
    this.deleted = new Set();
    this.waiting = new Map(); // conversation -> timer
    this.onchange = () => {};
    this.channel = new BroadcastChannel("colossal-llama2-chat");
    this.elsewhere = new Map(); // id -> when another tab last said that an answer is coming in there
    this.channel.onmessage = ({ data: { id, answering } }) => {
      if (answering) this.elsewhere.set(id, Date.now());
      else this.elsewhere.delete(id);
      this.onchange(id);
    };
    if (store.problem) notices.set("storage", () => ({ words: t("storageClosed", { message: store.problem }) }));
  }

  hold(conversation) {
    this.held.set(conversation.id, conversation);
  }

  release(conversation) {
    this.held.delete(conversation.id);
  }

  titles() {
    return this.store.titles();
  }

  /** Return the conversation, or undefined where there is none. */
  async load(id) {
    if (!id || this.held.has(id)) return this.held.get(id);
    const conversation = await this.store.get(id);
    const grows = Date.now() - (this.elsewhere.get(id) ?? 0) < SILENCE;
    if (conversation && !grows) closeUnfinished(conversation);
    return conversation;
  }

  saveSoon(conversation) {
    if (this.waiting.has(conversation)) return;
    this.waiting.set(conversation, setTimeout(() => this.save(conversation), PAUSE));
  }

  /** Save what waits to be saved: the page is about to go. */
  saveNow() {
    for (const conversation of [...this.waiting.keys()]) this.save(conversation);
  }

  async save(conversation) {
    clearTimeout(this.waiting.get(conversation));
    this.waiting.delete(conversation);
    if (this.deleted.has(conversation.id)) return;
    try {
      await this.store.save(conversation);
      if (!this.store.problem) this.notices.clear("storage");
      this.tellOthers(conversation.id);
    } catch (error) {
      const words = error.name === "QuotaExceededError" ? () => t("storageFull") : () => t("storageClosed", { message: error.message });
      this.notices.set("storage", () => ({ words: words() }));
    }
  }

  tellOthers(id) {
    this.channel.postMessage({ id, answering: this.held.has(id) });
  }

  async delete(id) {
    this.deleted.add(id);
    await this.store.delete(id);
    this.tellOthers(id);
  }

  async clear() {
    for (const { id } of await this.titles()) await this.delete(id);
    await this.store.clear();
  }
}
