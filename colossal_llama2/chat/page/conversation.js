// A conversation as it is kept: one or more columns, each a model with a history of its own.
//
//   {id, title, named, compare, updated, columns: [{model, messages: [question, answer, ...]}]}
//   question: {role: "user", content}
//   answer:   {role: "assistant", content, model, state, error?, finish?, tokens?, dropped?, continued?}
//
// `state` is "waiting" (no token yet), "streaming", "done", "stopped" or "failed" (`error` says why).

const MAX_TITLE = 60; // characters

export function newConversation(models, compare = false) {
  return {
    id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random().toString(36).slice(2)}`, // none over plain http
    title: "",
    named: false,
    compare,
    updated: Date.now(),
    columns: models.map((model) => ({ model, messages: [] })),
  };
}

export function isEmpty(conversation) {
  return conversation.columns.every(({ messages }) => messages.length === 0);
}

/** Put a question to every column; the first one names the conversation. */
export function addQuestion(conversation, content) {
  for (const column of conversation.columns) column.messages.push({ role: "user", content });
  if (!conversation.title) conversation.title = titleOf(content);
}

function titleOf(question) {
  const characters = [...question.trim().split("\n")[0]];
  return characters.length > MAX_TITLE ? `${characters.slice(0, MAX_TITLE).join("")}…` : characters.join("");
}

export function addAnswer(column) {
  const answer = { role: "assistant", content: "", model: column.model, state: "waiting" };
  column.messages.push(answer);
  return answer;
}

/** Take the last answer away so that its question can be asked again; with `content` as other words. */
export function reopenQuestion(column, content) {
  const index = column.messages.findLastIndex(({ role }) => role === "user");
  column.messages.length = index + 1;
  if (content !== undefined) column.messages[index].content = content;
}

export function isAnswering(message) {
  return message.state === "waiting" || message.state === "streaming";
}

/** Tell whether the question at `index` got no answer although the conversation went on. */
export function isUnanswered(messages, index) {
  const next = messages[index + 1];
  return messages[index].role === "user" && next?.role === "assistant" && !next.content && index + 2 < messages.length;
}

/**
 * Return what the server is sent: the whole history, the system prompt first.
 *
 * A question that got no answer is left out together with its empty answer, because chat templates want the turns to
 * alternate; the thread says so below the question.
 */
export function messagesToSend(messages, system) {
  const kept = messages.filter((message, index) => {
    if (message.role === "user") return !isUnanswered(messages, index);
    return message.content !== "" && !isAnswering(message);
  });
  const history = kept.map(({ role, content }) => ({ role, content }));
  return system.trim() ? [{ role: "system", content: system }, ...history] : history;
}

/** Call an answer failed that was still coming in when the page was closed. */
export function closeUnfinished(conversation) {
  for (const { messages } of conversation.columns) {
    for (const message of messages.filter(isAnswering)) {
      message.state = "failed";
      message.error = { kind: "unfinished" };
    }
  }
}
