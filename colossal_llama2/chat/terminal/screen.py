"""What is written: replies on standard output, everything else beside them on standard error."""

from __future__ import annotations

import sys

from colossal_llama2 import cli

_CONTROL = {**{code: 0x2400 + code for code in range(0x20)}, 0x7F: 0x2421, **dict.fromkeys(range(0x80, 0xA0), 0xFFFD)}
_SHOWN = {code: sign for code, sign in _CONTROL.items() if code not in (0x09, 0x0A)}


class Screen:
    """Writes parts of replies and notes, each note on a line of its own.

    On a terminal control characters that a model writes are shown as signs: they could move the cursor, or set the
    title, or make the terminal type. In a pipe a reply goes out as it is.
    """

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._at_line_start = True

    def part(self, text: str) -> None:
        """Write a part of a reply."""
        self._at_line_start = text.endswith("\n") if text else self._at_line_start
        sys.stdout.write(visible(text) if self._is_terminal else text)
        sys.stdout.flush()

    def end_reply(self) -> None:
        """End the line of a reply; an empty one is an empty line, so that a script can count."""
        sys.stdout.write("\n")
        sys.stdout.flush()
        self._at_line_start = True

    def header(self, name: str) -> None:
        """Say whose reply comes next."""
        self.part(f"── {name} ──\n")

    def note(self, text: str) -> None:
        """Write something that no model said."""
        if self._is_terminal and not self._at_line_start:
            self.end_reply()
        print(f"[{visible(text)}]", file=sys.stderr, flush=True)

    def complain(self, text: str) -> None:
        """Write what was wrong with an input, and go on."""
        print(f"error: {visible(text)}", file=sys.stderr, flush=True)

    def tell(self, text: str) -> None:
        """Write lines that were asked for."""
        print(visible(text), file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """Return a text with signs in place of control characters, line ends and tabs left as they are."""
    return text.translate(_SHOWN)


def warn(text: str) -> None:
    """Say something before the conversation begins."""
    cli.warn(text)
