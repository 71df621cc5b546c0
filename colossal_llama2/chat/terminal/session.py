"""The talk of one user with one or several models: what each line that is typed does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from colossal_llama2.chat.talk.conversation import Conversation
from colossal_llama2.chat.talk.history import Fitted
from colossal_llama2.chat.talk.saving import load_conversations, save_conversations
from colossal_llama2.chat.talk.speaker import Reply, Speaker
from colossal_llama2.chat.terminal.interrupts import stopping_by_ctrl_c
from colossal_llama2.chat.terminal.screen import Screen
from colossal_llama2.errors import InputError


@dataclass
class Seat:
    """A model at the table, with its own conversation.

    Attributes:
        speaker: the model.
        conversation: what it and the user said.
        num_dropped: turns that were left out of its last prompt.
    """

    speaker: Speaker
    conversation: Conversation
    num_dropped: int = 0


@dataclass
class Session:
    """Takes one line after another.

    Attributes:
        seats: the models; each is asked the same and answers to its own history.
        screen: where replies and notes go.
        is_interactive: somebody sits there: a mistake is told and the talk goes on, Ctrl-C stops a reply and keeps it.
    """

    seats: list[Seat]
    screen: Screen
    is_interactive: bool
    _attempts: int = 0
    _own_files: set[Path] = field(default_factory=set)

    def take(self, line: str) -> bool:
        """Do what a line asks for, and tell whether the talk goes on.

        Raises:
            InputError: it cannot be done, and nobody sits there.
        """
        try:
            return self._do(line)
        except InputError as error:
            if not self.is_interactive:
                raise
            self.screen.complain(str(error))
            return True
        except KeyboardInterrupt:
            if not self.is_interactive:
                raise
            # Ctrl-C pressed twice, or while no reply was written: impatience must not cost what was said.
            self.screen.note("interrupted; /retry asks again")
            return True

    def _do(self, line: str) -> bool:
        if not line.strip():
            return True
        if not line.startswith("/"):
            self._say(line)
            return True
        name, _, rest = line.strip().partition(" ")
        if name == "/quit":
            return False
        command = COMMANDS.get(name)
        if command is None:
            raise InputError(f"unknown command {name}", remedy="type /help; a blank before the / makes it a message")
        if command.argument == "" and rest:
            raise InputError(f"{name} takes nothing behind it", remedy="type /help")
        if command.argument.isupper() and not rest.strip():
            raise InputError(f"{name} needs a {command.argument.lower()}", remedy=f"type {name} {command.argument}")
        command.do(self, rest.strip())
        return True

    def _say(self, text: str) -> None:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError("the message is not UTF-8", remedy="type it again") from None
        taken_back = [seat.conversation.ask(text) for seat in self.seats]
        if any(taken_back):
            self.screen.note("the message before this one was not answered, and is taken back")
        try:
            asked = self._fitted()
        except InputError:
            for seat in self.seats:  # what does not fit, or cannot be rendered, would stand in the way of the next
                seat.conversation.undo()
            raise
        self._answer(asked)

    def _fitted(self) -> list[tuple[Seat, Fitted]]:
        return [(seat, seat.speaker.fit(seat.conversation.turns)) for seat in self.seats]

    def _answer(self, asked: list[tuple[Seat, Fitted]]) -> None:
        attempt, self._attempts = self._attempts, self._attempts + 1
        for seat, fitted in asked:
            if len(self.seats) > 1:
                self.screen.header(seat.speaker.name)
            dropped = len(fitted.dropped)
            if dropped != seat.num_dropped and dropped:
                whole = seat.conversation.num_said
                self.screen.note(f"the context is full: the oldest {dropped} of {whole} messages are left out")
            seat.num_dropped = dropped
            with self._interrupting() as cancelled:
                reply = seat.speaker.reply(fitted, attempt, self.screen.part, cancelled)
            self.screen.end_reply()
            self._take_in(seat, reply)
            if reply.finish == "cancelled":
                break  # Ctrl-C is meant for all that would follow

    def _interrupting(self) -> AbstractContextManager[Callable[[], bool]]:
        return stopping_by_ctrl_c() if self.is_interactive else nullcontext(lambda: False)

    def _take_in(self, seat: Seat, reply: Reply) -> None:
        kept = seat.conversation.answer(reply.text)
        if reply.finish == "cancelled":
            self.screen.note("stopped; what is written is kept" if kept else "stopped before anything was written")
        elif reply.finish == "limit":
            self.screen.note(f"cut off after {reply.num_tokens} tokens; --max_new_tokens sets the limit")
        if not kept and reply.finish != "cancelled":
            self.screen.note("the model said nothing; /retry asks again")

    def help(self, _: str) -> None:
        """Tell the commands."""
        rows = [(f"{name} {command.argument}", command.help) for name, command in COMMANDS.items()]
        width = max(len(usage) for usage, _ in rows)
        lines = [f"{usage:<{width}}  {text}" for usage, text in (*rows, ("/quit", "leave; so do Ctrl-D and Ctrl-C"))]
        self.screen.tell("\n".join(lines) + "\n" + _KEYS)

    def reset(self, _: str) -> None:
        """Forget what was said."""
        for seat in self.seats:
            seat.conversation.reset()
            seat.num_dropped = 0
        self.screen.note("a new conversation")

    def system(self, text: str) -> None:
        """Set or remove the system message."""
        for seat in self.seats:
            seat.conversation.system = text
        self.screen.note("the system message is set" if text else "there is no system message now")

    def retry(self, _: str) -> None:
        """Answer the last message again.

        Raises:
            InputError: there is none.
        """
        before = [seat.conversation.turns for seat in self.seats]
        asked = [seat.conversation.ask_again() for seat in self.seats]
        try:
            if not all(asked):
                raise InputError("there is nothing to answer again", remedy="say something first")
            fitted = self._fitted()
        except InputError:
            for seat, turns in zip(self.seats, before, strict=True):  # the replies that were there stay
                seat.conversation.replace(turns)
            raise
        self._answer(fitted)

    def undo(self, _: str) -> None:
        """Take back the last message and its reply.

        Raises:
            InputError: there is none.
        """
        taken = [seat.conversation.undo() for seat in self.seats]
        if not any(taken):
            raise InputError("there is nothing to take back", remedy="say something first")
        said = next(turn.content for turn in taken if turn)
        self.screen.note(f"taken back: {said}")

    def save(self, name: str) -> None:
        """Write the conversation to a file; one that this talk wrote or read is replaced.

        Raises:
            InputError: nothing was said, or another file stands there.
        """
        path = Path(name).expanduser()
        held = {seat.speaker.name: seat.conversation.turns for seat in self.seats}
        if path.exists() and path.resolve() not in self._own_files:
            raise InputError("exists already", path=path, remedy="choose another name")
        save_conversations(held, path, overwrite=True)
        self._own_files.add(path.resolve())
        self.screen.note(f"saved to {path}")

    def load(self, name: str) -> None:
        """Go on with a conversation from a file; several models take as many, or all the only one.

        Raises:
            InputError: it cannot be read, or holds another number.
        """
        path = Path(name).expanduser()
        found = load_conversations(path)
        if len(found) not in (1, len(self.seats)):
            what = f"holds {len(found)} conversations, and {len(self.seats)} can go on"
            raise InputError(what, path=path, remedy="leave one line in the file")
        for seat, turns in zip(self.seats, found if len(found) > 1 else found * len(self.seats), strict=True):
            seat.conversation.replace(turns)
            seat.num_dropped = 0
        self._own_files.add(path.resolve())
        waits = "; /retry answers the last one" if any(seat.conversation.is_asked for seat in self.seats) else ""
        self.screen.note(f"{len(found[0])} messages loaded{waits}")


class Command(NamedTuple):
    """What stands behind a command's name: what it takes (in capitals if it must be there), its help, and its deed."""

    argument: str
    help: str
    do: Callable[[Session, str], None]


COMMANDS: Final = {
    "/help": Command("", "this list", Session.help),
    "/reset": Command("", "begin a new conversation", Session.reset),
    "/system": Command("[text]", "set the system message, or remove it", Session.system),
    "/retry": Command("", "have the last message answered again", Session.retry),
    "/undo": Command("", "take back the last message and its reply", Session.undo),
    "/save": Command("FILE", "write the conversation, as tools/prepare_dataset.py --type sft reads it", Session.save),
    "/load": Command("FILE", "go on with a conversation that was saved", Session.load),
}
_KEYS: Final = (
    'Alt-Enter begins a new line, a block between """ and """ is one message, Ctrl-C stops a reply and keeps it.'
)
