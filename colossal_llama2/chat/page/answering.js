// Answers that are coming in, whether or not their conversation is the one on the page.

import { addAnswer, messagesToSend } from "./conversation.js";
import { preferences } from "./preferences.js";
import { ServerError, streamAnswer } from "./server.js";

export class Answering {
  /** @param events {began, grew, ended}, each called with (conversation, column, answer). */
  constructor(events) {
    this.events = events;
    this.running = new Map(); // answer -> {conversation, controller}
  }

  isRunning(conversation) {
    return [...this.running.values()].some((run) => run.conversation.id === conversation.id);
  }

  /** Stop every answer of a conversation; what has come stays. */
  stop(conversation) {
    for (const run of this.running.values()) {
      if (run.conversation.id === conversation.id) run.controller.abort();
    }
  }

  /** Ask for the answer to a column's last question. Never throws: what goes wrong stands in the answer. */
  async start(conversation, column) {
    const request = requestFor(column);
    const answer = addAnswer(column);
    conversation.updated = Date.now();
    const controller = new AbortController();
    this.running.set(answer, { conversation, controller });
    this.events.began(conversation, column, answer);
    try {
      for await (const part of streamAnswer(request, preferences.key, controller.signal)) {
        take(answer, part);
        this.events.grew(conversation, column, answer);
      }
      answer.state = "done";
    } catch (error) {
      if (controller.signal.aborted) answer.state = "stopped";
      else {
        answer.state = "failed";
        answer.error = error instanceof ServerError ? error.details : { kind: "garbled", message: String(error) };
      }
    }
    this.running.delete(answer);
    this.events.ended(conversation, column, answer);
  }
}

function take(answer, { text, ...facts }) {
  Object.assign(answer, facts);
  if (text) {
    answer.content += text;
    answer.state = "streaming";
  }
}

/** Build the request; what was not set is left to the server. */
function requestFor(column) {
  const settings = {
    temperature: preferences.get("temperature"),
    top_p: preferences.get("topP"),
    max_tokens: preferences.get("maxTokens"),
    seed: preferences.get("seed"),
  };
  const chosen = Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== null));
  return { model: column.model, messages: messagesToSend(column.messages, preferences.get("system")), ...chosen };
}
