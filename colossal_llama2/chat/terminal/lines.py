"""What the user types: with line editing on a terminal, line by line from a pipe; blocks of several lines in both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from colossal_llama2.errors import InputError

FENCE = '"""'


def join_blocks(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines, those between two fences as one.

    A block begins with a line that begins with three quotes, and ends with one that ends with three; on one line
    they may stand too.

    Raises:
        InputError: the last block has no end.
    """
    block: list[str] | None = None
    for line in lines:
        if block is None:
            if not line.startswith(FENCE):
                yield line
                continue
            block, line = [], line.removeprefix(FENCE)
        if line.rstrip().endswith(FENCE):
            yield "\n".join([*block, line.rstrip().removesuffix(FENCE)]).strip("\n")
            block = None
        else:
            block.append(line)
    if block is not None:
        raise InputError(f"a block that begins with {FENCE} has no end", remedy=f"end its last line with {FENCE}")


def piped_lines() -> Iterator[str]:
    """Yield the lines of standard input, which is UTF-8.

    Raises:
        InputError: it is something else.
    """
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError("not UTF-8", path="standard input", line=number, remedy="convert it to UTF-8") from None
        yield text.removesuffix("\n").removesuffix("\r")


def typed_lines(commands: Sequence[str]) -> Iterator[str]:
    """Yield what is typed on the terminal, until Ctrl-D, or Ctrl-C at the prompt.

    Enter sends, Alt-Enter begins a new line, a pasted text keeps its lines.

    Args:
        commands: what is completed by the tabulator.
    """
    ask = _prompter(commands)
    while True:
        try:
            first = ask("> ")
        except (EOFError, KeyboardInterrupt):
            return
        try:
            line = next(join_blocks(chain([first], iter(lambda: ask("… "), None))))
        except (EOFError, KeyboardInterrupt):
            continue  # a block that was begun is given up, not the conversation
        yield line


def _prompter(commands: Sequence[str]) -> Callable[[str], str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        output=create_output(always_prefer_tty=True),  # replies may go to a file
    )
    return session.prompt
