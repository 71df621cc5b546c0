// The chat server, reached where this page came from: its models, its answers, its errors.

import { eventData } from "./event_stream.js";

const MAX_SHOWN = 500; // characters of an error's message
const CONTINUED_TOKENS = 256; // of a text that is continued: the API's own default is 16, which shows nothing

/** What went wrong, as a `kind` the page has words for; everything in it can be stored with the conversation. */
export class ServerError extends Error {
  /** @param {"unreachable"|"key"|"busy"|"refused"|"broken"|"garbled"|"lost"} kind */
  constructor(kind, details = {}) {
    super(kind);
    this.details = { kind, ...details };
  }
}

/** List the names of the models the server offers. */
export async function listModels(key) {
  const response = await ask("v1/models", { headers: headers(key) });
  const answer = await response.json().catch((error) => {
    throw new ServerError("garbled", { message: error.message });
  });
  if (!Array.isArray(answer.data)) throw new ServerError("garbled", { message: shorten(JSON.stringify(answer)) });
  return answer.data.map(({ id }) => String(id));
}

/**
 * Ask for an answer and yield what comes of it: {text}, {finish}, {tokens}, {dropped} and {continued} as they arrive.
 *
 * Ends when the answer is complete, throws ServerError otherwise, and an AbortError when `signal` stopped it.
 */
export async function* streamAnswer(request, key, signal) {
  const { response, continued } = await openStream(request, key, signal);
  if (continued) yield { continued };
  const dropped = Number(response.headers.get("x-dropped-messages"));
  if (dropped > 0) yield { dropped };
  let finished = false;
  try {
    for await (const data of eventData(response.body)) {
      if (data === "[DONE]") return;
      const chunk = parseChunk(data);
      const [choice] = chunk.choices ?? [];
      const text = choice?.delta?.content ?? choice?.text;
      if (text) yield { text };
      if (choice?.finish_reason) {
        finished = true;
        yield { finish: choice.finish_reason };
      }
      if (chunk.usage) yield { tokens: chunk.usage.completion_tokens };
    }
  } catch (error) {
    if (signal.aborted || error instanceof ServerError) throw error;
    throw new ServerError("lost");
  }
  if (!finished) throw new ServerError("lost");
}

/** Open the stream; a model without a chat template, as base models are, goes on with what was said as plain text. */
async function openStream({ messages, ...options }, key, signal) {
  const post = (path, body) =>
    ask(path, {
      method: "POST",
      headers: { ...headers(key), "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, ...options, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
  try {
    return { response: await post("v1/chat/completions", { messages, truncation: "auto" }), continued: false };
  } catch (error) {
    if (error.details?.code !== "no_chat_template") throw error;
    const prompt = messages.map(({ content }) => content).join("\n\n");
    return { response: await post("v1/completions", { prompt, max_tokens: CONTINUED_TOKENS }), continued: true };
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...options, credentials: "same-origin", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("unreachable");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const text = await response.text().catch(() => "");
  const { message: said, code } = apiError(text);
  const message = shorten(said || text || response.statusText);
  const { status } = response;
  if (status === 401 || status === 403) return new ServerError("key", { message, status });
  if (status === 429 || status === 503) return new ServerError("busy", { message, status, seconds: secondsToWait(response) });
  return new ServerError(status >= 500 ? "broken" : "refused", { message, status, code });
}

function apiError(text) {
  try {
    const { message, code } = JSON.parse(text).error;
    return typeof message === "string" ? { message, code } : {};
  } catch {
    return {};
  }
}

function secondsToWait(response) {
  const seconds = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  return seconds > 0 ? seconds : null;
}

function parseChunk(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ServerError("garbled", { message: shorten(data) });
  }
  if (chunk?.error) throw new ServerError("broken", { message: shorten(String(chunk.error.message)), status: chunk.error.code ?? 500 });
  if (chunk === null || typeof chunk !== "object") throw new ServerError("garbled", { message: shorten(data) });
  return chunk;
}

function shorten(text) {
  return text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN)}…` : text;
}
