// Where a link of an answer may lead.

const ALLOWED = new Set(["http:", "https:", "mailto:"]);

/**
 * Return the address a link may have, or null when the link has to stay text.
 *
 * The browser's own parser decides what the scheme is, after it has removed the tabs, newlines and encodings behind
 * which "javascript:" likes to hide; what comes out of that parser, not what went in, becomes the address. A relative
 * address would lead to the chat server itself, which the model knows nothing of, so it is refused too.
 */
export function safeLink(address) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  return ALLOWED.has(url.protocol) ? url.href : null;
}
