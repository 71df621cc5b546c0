"""A conversation that must fit a model's context: the oldest exchanges go first, and it is told which."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from colossal_llama2.dataset.conversation import SYSTEM, USER, Turn
from colossal_llama2.errors import InputError


class Encodes(Protocol):
    """What makes ids of turns: a `ChatFormat`."""

    def encode(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids that ask for the assistant's reply to these turns."""
        ...


@dataclass(frozen=True)
class Fitted:
    """What a model is given.

    Attributes:
        prompt_ids: ids of the turns that were kept.
        dropped: the turns that were left out, oldest first; whoever shows the reply must say so.
    """

    prompt_ids: list[int]
    dropped: tuple[Turn, ...] = ()


def fit_history(chat_format: Encodes, turns: Sequence[Turn], max_new_tokens: int, context_length: int) -> Fitted:
    """Leave out the oldest exchanges until the prompt and a reply of `max_new_tokens` fit the context.

    What is kept begins with a turn of the user, as templates ask for; a system turn at the head is always kept. No
    more is dropped than must be.

    Args:
        chat_format: encodes.
        turns: the conversation, the turn to answer last.
        max_new_tokens: room that the reply needs, in tokens.
        context_length: of the model, in tokens.

    Raises:
        InputError: the last turn alone is too long, or the template cannot render the conversation.
    """
    head = tuple(turns[:1]) if turns and turns[0].role == SYSTEM else ()
    rest = tuple(turns[len(head) :])
    whole = chat_format.encode(turns)
    room = context_length - max_new_tokens
    if len(whole) <= room:
        return Fitted(whole)
    begins = [number for number, turn in enumerate(rest) if turn.role == USER and number > 0]
    if begins:
        # Fewer turns are fewer tokens, so halving finds the first beginning that fits.
        place = bisect_left(begins, True, key=lambda begin: len(chat_format.encode([*head, *rest[begin:]])) <= room)
        begin = begins[min(place, len(begins) - 1)]
        whole = chat_format.encode([*head, *rest[begin:]])
        if len(whole) <= room:
            return Fitted(whole, rest[:begin])
    what = "the last message with the system message" if head else "the last message"
    raise InputError(
        f"{what} is {len(whole)} tokens long, and with {max_new_tokens} tokens of reply the model's context has room "
        f"for {max(room, 0)}",
        remedy="shorten it, or ask for fewer --max_new_tokens",
    )
