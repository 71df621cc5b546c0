// Conversations in the browser's own database: titles apart from bodies, so that the list reads no conversation.

const NAME = "colossal-llama2-chat";
const VERSION = 1;

/** Open the store. Where the browser keeps nothing, what is saved lives in memory and `problem` says why. */
export async function openStore() {
  try {
    return new ConversationStore(await openDatabase());
  } catch (error) {
    return new MemoryStore(error.message);
  }
}

function openDatabase() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION); // throws where it is forbidden, and a promise turns that around
    request.onupgradeneeded = () => {
      request.result.createObjectStore("titles", { keyPath: "id" });
      request.result.createObjectStore("conversations", { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function titleRecord({ id, title, compare, updated }) {
  return { id, title, compare, updated };
}

class ConversationStore {
  constructor(database) {
    this.database = database;
    this.problem = "";
    // Another tab that opens a newer version of the page waits for this one to let go.
    database.onversionchange = () => database.close();
  }

  /** Run `work` in one transaction, which is kept whole or not at all; rejects with the database's error. */
  transaction(mode, work) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(["titles", "conversations"], mode);
      const request = work(transaction.objectStore("titles"), transaction.objectStore("conversations"));
      transaction.oncomplete = () => resolve(request?.result);
      transaction.onabort = () => reject(transaction.error ?? new Error("aborted"));
    });
  }

  /** Return {id, title, compare, updated} of every conversation, the latest first. */
  async titles() {
    const titles = await this.transaction("readonly", (store) => store.getAll());
    return titles.sort((one, other) => other.updated - one.updated);
  }

  get(id) {
    return this.transaction("readonly", (_, conversations) => conversations.get(id));
  }

  save(conversation) {
    return this.transaction("readwrite", (titles, conversations) => {
      titles.put(titleRecord(conversation));
      conversations.put(conversation);
    });
  }

  delete(id) {
    return this.transaction("readwrite", (titles, conversations) => {
      titles.delete(id);
      conversations.delete(id);
    });
  }

  clear() {
    return this.transaction("readwrite", (titles, conversations) => {
      titles.clear();
      conversations.clear();
    });
  }
}

class MemoryStore {
  constructor(problem) {
    this.problem = problem;
    this.kept = new Map();
  }

  async titles() {
    return [...this.kept.values()].map(titleRecord).sort((one, other) => other.updated - one.updated);
  }

  async get(id) {
    return structuredClone(this.kept.get(id));
  }

  async save(conversation) {
    this.kept.set(conversation.id, structuredClone(conversation));
  }

  async delete(id) {
    this.kept.delete(id);
  }

  async clear() {
    this.kept.clear();
  }
}
