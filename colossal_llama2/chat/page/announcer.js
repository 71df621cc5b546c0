// What a screen reader is told without asking: one sentence when an answer begins, the answer when it is complete.

const MAX_SPOKEN = 2000; // characters
const MAX_LINES = 6;

/** Say `text` politely; the same sentence twice is said twice. */
export function announce(text) {
  const region = document.getElementById("announcements");
  const line = document.createElement("p");
  line.textContent = text;
  // Lines stay for a while: answers that are compared may end together, and none may take the other's place.
  region.append(line);
  while (region.children.length > MAX_LINES) region.firstChild.remove();
}

/** Shorten an answer to what may be read out, saying so by `ending`. */
export function spoken(text, ending) {
  return text.length > MAX_SPOKEN ? text.slice(0, MAX_SPOKEN) + ending : text;
}
