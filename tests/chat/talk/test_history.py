"""What is left out is the oldest, no more than must be, and told."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.chat.talk.history import fit_history
from colossal_llama2.dataset.conversation import Turn
from colossal_llama2.errors import InputError


class Counting:
    """One id a character, a number for each turn beside them."""

    def encode(self, turns: Sequence[Turn]) -> list[int]:
        assert next(turn.role for turn in turns if turn.role != "system") == "user"
        return [index for turn in turns for index in (-len(turn.content), *turn.content.encode())]


def chat(*contents: str, system: str = "") -> list[Turn]:
    roles = ("user", "assistant")
    turns = [Turn(roles[number % 2], content) for number, content in enumerate(contents)]
    return [Turn("system", system), *turns] if system else turns


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(lambda found: len(found) % 2 == 1),
    system=st.sampled_from(["", "s"]),
    room=st.integers(0, 60),
)
def test_the_fewest_oldest_exchanges_go(lengths: list[int], system: str, room: int) -> None:
    turns = chat(*("x" * length for length in lengths), system=system)
    size = lambda some: sum(len(turn.content) + 1 for turn in some)  # noqa: E731
    head, rest = turns[: len(system)], turns[len(system) :]
    fitting = [begin for begin in range(0, len(rest), 2) if size([*head, *rest[begin:]]) <= room]
    if not fitting:
        with pytest.raises(InputError, match="the last message"):
            fit_history(Counting(), turns, 10, room + 10)
        return
    fitted = fit_history(Counting(), turns, 10, room + 10)
    assert list(fitted.dropped) == rest[: fitting[0]]
    assert fitted.prompt_ids == Counting().encode([*head, *rest[fitting[0] :]])
    assert len(fitted.prompt_ids) + 10 <= room + 10


def test_the_error_names_the_numbers() -> None:
    with pytest.raises(InputError) as caught:
        fit_history(Counting(), chat("a" * 50, system="be"), 8, 32)
    assert "54 tokens" in str(caught.value)
    assert "24" in str(caught.value)
    assert "--max_new_tokens" in str(caught.value)


def test_two_messages_in_a_row_go_one_by_one() -> None:
    turns = [Turn("user", "aaaa"), Turn("user", "b"), Turn("assistant", "c"), Turn("user", "d")]
    fitted = fit_history(Counting(), turns, 1, 8)
    assert fitted.dropped == tuple(turns[:1])
