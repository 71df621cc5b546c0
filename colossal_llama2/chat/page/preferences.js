// What the person chose: settings in localStorage, the key in sessionStorage, so that it is gone with the tab.

const NAME = "colossal-llama2-settings";
const KEY_NAME = "colossal-llama2-key";
const OPENED_NAME = "colossal-llama2-opened";
const DEFAULTS = {
  language: "", // "en", "zh" or "" for the browser's
  theme: "", // "light", "dark" or "" for the system's
  model: "",
  system: "",
  temperature: null, // null leaves the choice to the server
  topP: null,
  maxTokens: null,
  seed: null,
};

function read(storage, name) {
  try {
    return storage().getItem(name);
  } catch {
    return null; // a browser that keeps nothing; conversation_store.js says so
  }
}

function write(storage, name, value) {
  try {
    if (value === "") storage().removeItem(name);
    else storage().setItem(name, value);
  } catch {
    // Kept in memory for as long as the page is open.
  }
}

/** Read what was stored; a setting that is missing, or of another kind than it should be, is the usual one. */
function parse(text) {
  let stored;
  try {
    stored = JSON.parse(text) ?? {};
  } catch {
    stored = {};
  }
  return Object.fromEntries(Object.entries(DEFAULTS).map(([name, usual]) => [name, isSound(stored[name], usual) ? stored[name] : usual]));
}

function isSound(value, usual) {
  return usual === null ? value === null || Number.isFinite(value) : typeof value === "string";
}

class Preferences {
  constructor() {
    this.values = parse(read(() => localStorage, NAME) ?? "{}");
    this.secret = read(() => sessionStorage, KEY_NAME) ?? "";
  }

  get(name) {
    return this.values[name];
  }

  set(changes) {
    Object.assign(this.values, changes);
    write(() => localStorage, NAME, JSON.stringify(this.values));
  }

  /** The conversation that was open in this tab: a reload opens it again. */
  get opened() {
    return read(() => sessionStorage, OPENED_NAME) ?? "";
  }

  set opened(id) {
    write(() => sessionStorage, OPENED_NAME, id);
  }

  get key() {
    return this.secret;
  }

  set key(value) {
    this.secret = value.trim();
    write(() => sessionStorage, KEY_NAME, this.secret);
  }
}

export const preferences = new Preferences();
