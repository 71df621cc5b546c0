"""A conversation while it is held: what was said, taken back, tried again."""

from __future__ import annotations

from collections.abc import Sequence

from colossal_llama2.dataset.conversation import ASSISTANT, SYSTEM, USER, Turn


class Conversation:
    """The turns of a user and one model, and a system message at their head.

    A reply that says nothing is no turn: no template can render it and nothing could be learned of it. What the user
    said stays, unanswered, until it is answered by another try or replaced by what is said next.

    Args:
        system: the system message; empty for none.
    """

    def __init__(self, system: str = "") -> None:
        self.system = system
        self._said: list[Turn] = []

    @property
    def turns(self) -> list[Turn]:
        """All turns, the system message among them."""
        return [*([Turn(SYSTEM, self.system)] if self.system else []), *self._said]

    @property
    def is_asked(self) -> bool:
        """Whether the last turn is the user's."""
        return bool(self._said) and self._said[-1].role == USER

    @property
    def num_said(self) -> int:
        """Turns, the system message left out."""
        return len(self._said)

    def ask(self, text: str) -> Turn | None:
        """Add what the user says, and return what stood there unanswered: it is taken back."""
        before = self._said.pop() if self.is_asked else None
        self._said.append(Turn(USER, text))
        return before

    def answer(self, text: str) -> bool:
        """Add a reply, and tell whether it says anything: one that does not is left out."""
        if not text.strip():
            return False
        self._said.append(Turn(ASSISTANT, text))
        return True

    def ask_again(self) -> bool:
        """Take the last reply back, and tell whether there is something to answer."""
        while self._said and self._said[-1].role != USER:
            self._said.pop()
        return self.is_asked

    def undo(self) -> Turn | None:
        """Take back what the user said last, with the reply, and return it; None where nothing was said."""
        return self._said.pop() if self.ask_again() else None

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._said.clear()

    def replace(self, turns: Sequence[Turn]) -> None:
        """Go on from other turns, their system message included."""
        head = turns[:1] if turns and turns[0].role == SYSTEM else []
        self.system = head[0].content if head else ""
        self._said = list(turns[len(head) :])
