"""A speaker without a model, which says what it is told to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from colossal_llama2.chat.talk.history import Fitted
from colossal_llama2.chat.talk.speaker import Reply
from colossal_llama2.dataset.conversation import Turn
from colossal_llama2.errors import InputError


@dataclass
class FakeSpeaker:
    """Answers with the number of turns it was shown; what it is told to do comes first."""

    name: str = "fake"
    context: int = 5
    says: list[tuple[str, str]] = field(default_factory=list)
    asked: list[tuple[list[Turn], int]] = field(default_factory=list)

    def fit(self, turns: Sequence[Turn]) -> Fitted:
        """Keep the last turns; a message with the word long in it does not fit."""
        if "long" in turns[-1].content:
            raise InputError("the last message is too long")
        self._shown = list(turns[-self.context :])
        return Fitted([1], tuple(turns[: -self.context]))

    def reply(
        self,
        fitted: Fitted,
        attempt: int = 0,
        emit: Callable[[str], object] = lambda part: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """Answer."""
        self.asked.append((self._shown, attempt))
        text, finish = self.says.pop(0) if self.says else (f"{self.name} saw {len(self._shown)}", "end_token")
        for part in text:
            emit(part)
        return Reply(text, finish, len(text), 1.0)


@pytest.fixture
def fake_speaker() -> Callable[..., FakeSpeaker]:
    """Give the class."""
    return FakeSpeaker
