// Server-sent events out of the body of an answer to fetch (EventSource can send neither a body nor a key).

/**
 * Yield the data of each event of a stream.
 *
 * Follows the "event stream interpretation" of the HTML standard as far as a chat needs it: lines end in \n, \r\n or
 * \r, data lines of one event are joined by newlines, comments and other fields pass unread.
 *
 * @param {ReadableStream<Uint8Array>} body
 */
export async function* eventData(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      rest += value;
      // A \r at the very end may be half of \r\n: it waits for what comes next.
      const whole = rest.endsWith("\r") ? rest.slice(0, -1) : rest;
      const lines = whole.split(/\r\n|\n|\r/);
      rest = lines.pop() + rest.slice(whole.length);
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the connection may be gone already
  }
}
