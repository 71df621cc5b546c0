"""Which characters of a rendered conversation are whose, and which of them are learned.

Three ways lead there, and each is checked against the text that the template really rendered.

1. A *frame*: the template is rendered once for each sequence of roles with words in place of the contents that no text
   holds, and with odd blanks around them, which show whether the template strips. The text must then be the
   frame's literals with the contents, stripped as was seen, between them, character for character.
2. Where it is not (a template that cuts old thoughts out of earlier turns, say), each turn alone is replaced by such a
   word, the others standing as they are: what stands before and after the word must begin and end the text.
3. Where that fails too, only a template that marks the assistant's text with ``generation`` tags is followed: learned
   is what it marks, and content is everything that changes when the turn is replaced. Others are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from typing import Final, Literal

from colossal_llama2.dataset.conversation import ASSISTANT, SYSTEM, USER, Turn
from colossal_llama2.dataset.conversation_markers import Markers
from colossal_llama2.dataset.conversation_template import ChatTemplate, Rendered
from colossal_llama2.errors import InputError

Span = tuple[int, int]
Learn = Literal["all", "last", "none"]
_WORD: Final = "qzplaceholder{}zq"
_ASKED_AFTER: Final = 8  # turns
_MOST_FRAMES: Final = 512
_LEFT, _RIGHT = "\x1f\x0b", "\x0c\x1e"  # blanks that no template writes


@dataclass(frozen=True)
class Located:
    """A rendered conversation with its contents and what is learned of it.

    Attributes:
        text: the text.
        contents: [N] where each turn's content stands, as (begin, end), in order.
        learned: the parts that are learned, in order, none touching the next.
        unended: learned turns behind which the template writes no end token.
        refusal: why the conversation cannot be followed; then nothing else holds.
    """

    text: str
    contents: tuple[Span, ...] = ()
    learned: tuple[Span, ...] = ()
    unended: int = 0
    refusal: str | None = None


@dataclass(frozen=True)
class _Frame:
    """What the template writes around contents, and whether it keeps blanks at the begin and end of each."""

    literals: tuple[str, ...]
    keeps: tuple[tuple[bool, bool], ...]

    def place(self, turns: Sequence[Turn], text: str) -> tuple[Span, ...] | None:
        """Return where the contents stand if the text is this frame with these contents, else None."""
        parts, spans, at = [self.literals[0]], [], len(self.literals[0])
        for turn, literal, (left, right) in zip(turns, self.literals[1:], self.keeps, strict=True):
            content = turn.content if left else turn.content.lstrip()
            content = content if right else content.rstrip()
            spans.append((at, at + len(content)))
            parts += [content, literal]
            at += len(content) + len(literal)
        return tuple(spans) if "".join(parts) == text else None


class Locator:
    """Renders conversations and finds the contents and the learned parts in the text.

    Args:
        template: the chat template.
        markers: the tokenizer's added tokens.

    Attributes:
        end_token_ids: the token that ends an assistant's turn; empty where the template's own tags say what is learned.

    Raises:
        InputError: the template cannot render a plain conversation, or lets the assistant's turn end without a token.
    """

    def __init__(self, template: ChatTemplate, markers: Markers) -> None:
        self._template, self._markers = template, markers
        self._frames: dict[tuple[tuple[str, ...], bool], _Frame | None] = {}
        self.end_token_ids: frozenset[int] = frozenset()
        probe = [Turn(USER, "question"), Turn(ASSISTANT, "answer")]
        rendered = template.render([probe])[0]
        found = self._place(probe, rendered, False)
        if isinstance(found, str):
            raise InputError(
                f"the chat template ({template.source}) cannot be used: {found}", remedy="give another --chat_template"
            )
        end = found[-1][1]
        first = next(markers.find(rendered.text, end, len(rendered.text)), None)
        if (
            first is not None
            and not rendered.text[end : first.begin].strip()
            and not self._only_begins(first.marker.id)
        ):
            self.end_token_ids = frozenset([first.marker.id])
        elif not template.has_generation_tags:
            tail = rendered.text[end:]
            raise InputError(
                f"the chat template ({template.source}) ends an assistant's turn with {tail!r}, which is no token of "
                "the tokenizer, so the model would not learn to stop",
                remedy="add the token to the tokenizer, or give a --chat_template that writes eos_token there",
            )

    def locate(
        self, conversations: Sequence[Sequence[Turn]], learn: Learn = "all", generation_prompt: bool = False
    ) -> list[Located]:
        """Render conversations and find what is learned: the assistant's turns with their end token.

        Args:
            conversations: the conversations.
            learn: all turns of the assistant, the last turn alone, or nothing.
            generation_prompt: end with what stands before the assistant's next answer.
        """
        return [
            self._locate(turns, rendered, learn, generation_prompt)
            for turns, rendered in zip(
                conversations, self._template.render(conversations, generation_prompt), strict=True
            )
        ]

    def _locate(self, turns: Sequence[Turn], rendered: Rendered, learn: Learn, generation_prompt: bool) -> Located:
        contents = self._place(turns, rendered, generation_prompt)
        if isinstance(contents, str):
            return Located("", refusal=contents)
        located = Located(rendered.text, contents)
        if learn == "none":
            return located
        mine = [
            number
            for number, turn in enumerate(turns)
            if turn.role == ASSISTANT and (learn == "all" or number == len(turns) - 1)
        ]
        for number in mine:
            if contents[number][0] == contents[number][1]:
                return Located(
                    "", refusal=f"the chat template leaves nothing of turn {number + 1}, which is to be learned"
                )
        if self._template.has_generation_tags:
            return self._with_tags(turns, located, rendered.generated, learn)
        ends = [contents[number + 1][0] if number + 1 < len(turns) else len(rendered.text) for number in mine]
        roles = tuple(turn.role for turn in turns)
        spans = []
        for number, end in zip(mine, ends, strict=True):
            ahead = rendered.text[contents[number - 1][1] if number else 0 : contents[number][0]]
            begin = contents[number][0] - self._with_blank(roles[:number], ahead)
            spans.append((begin, self._with_end(rendered.text, contents[number][1], end)))
        unended = sum(span[1] == contents[number][1] for number, span in zip(mine, spans, strict=True))
        return replace(located, learned=_joined(spans), unended=unended)

    def _with_blank(self, before: tuple[str, ...], literal: str) -> int:
        """Return how many blanks at the end of what stands ahead of a turn belong to it.

        Blanks behind what asks for the answer (Llama-2 asks with ``[/INST]`` and answers with a blank ahead) are for
        the model to write.

        Args:
            before: roles of the turns ahead.
            literal: what the template writes between the last of them and this one.
        """
        frame = self._frame_of(_shortened(before), True) if before else None
        if frame is None or not literal.startswith(frame.literals[-1]):
            return 0
        written = literal.removeprefix(frame.literals[-1])
        return 0 if written.strip() else len(written)

    def _with_end(self, text: str, begin: int, end: int) -> int:
        """Return where a turn ends that stops at `begin`: behind its end token, if that comes before `end`."""
        first = next(self._markers.find(text, begin, end), None)
        if first is None or first.marker.id not in self.end_token_ids or text[begin : first.begin].strip():
            return begin
        return first.end

    def _with_tags(self, turns: Sequence[Turn], located: Located, generated: Sequence[Span], learn: Learn) -> Located:
        """Take what the template marks; it must hold every answer and nothing that another said."""
        spans = [span for span in generated if span[0] < span[1]]
        for number, (turn, (begin, end)) in enumerate(zip(turns, located.contents, strict=True), 1):
            inside = any(first <= begin and end <= last for first, last in spans)
            touched = any(first < end and begin < last for first, last in spans)
            if (turn.role == ASSISTANT and not inside) or (turn.role != ASSISTANT and touched):
                return Located("", refusal=f"the chat template's generation tags do not fit turn {number}")
        if learn == "last":
            before = located.contents[-2][1] if len(turns) > 1 else 0
            spans = [span for span in spans if span[0] >= before]
        return replace(located, learned=_joined(spans))

    def _only_begins(self, index: int) -> bool:
        return index == self._markers.bos_token_id and index != self._markers.eos_token_id

    def _place(self, turns: Sequence[Turn], rendered: Rendered, generation_prompt: bool) -> tuple[Span, ...] | str:
        """Return where the contents stand, or why that cannot be told."""
        if rendered.refusal is not None:
            return rendered.refusal
        frame = self._frame_of(tuple(turn.role for turn in turns), generation_prompt)
        spans = None if frame is None else frame.place(turns, rendered.text)
        return spans if spans is not None else self._place_one_by_one(turns, rendered.text, generation_prompt)

    def _frame_of(self, roles: tuple[str, ...], generation_prompt: bool) -> _Frame | None:
        key = (roles, generation_prompt)
        if key not in self._frames:
            if len(self._frames) >= _MOST_FRAMES:  # a server is asked with whatever roles somebody thinks of
                self._frames.clear()
            self._frames[key] = self._frame(roles, generation_prompt)
        return self._frames[key]

    def _frame(self, roles: tuple[str, ...], generation_prompt: bool) -> _Frame | None:
        words = [_WORD.format(number) for number in range(len(roles))]
        turns = [Turn(role, f"{_LEFT}{word}{_RIGHT}") for role, word in zip(roles, words, strict=True)]
        rest = self._template.render([turns], generation_prompt)[0].text
        literals, keeps = [], []
        for word in words:
            if rest.count(word) != 1:
                return None
            before, rest = rest.split(word)
            keeps.append((before.endswith(_LEFT), rest.startswith(_RIGHT)))
            literals.append(before.removesuffix(_LEFT))
            rest = rest.removeprefix(_RIGHT)
        return _Frame((*literals, rest), tuple(keeps))

    def _place_one_by_one(self, turns: Sequence[Turn], text: str, generation_prompt: bool) -> tuple[Span, ...] | str:
        word = next(word for word in map(_WORD.format, count()) if word not in text)
        spans: list[Span] = []
        for number, turn in enumerate(turns, 1):
            changed = [*turns[: number - 1], Turn(turn.role, word), *turns[number:]]
            parts = self._template.render([changed], generation_prompt)[0].text.split(word)
            if len(parts) != 2:
                how_often = "leaves out" if len(parts) < 2 else "writes more than once"
                return f"the chat template {how_often} turn {number} ({turn.role})"
            begin, end = _common(parts[0], text), len(text) - _common(parts[1][::-1], text[::-1])
            exact = begin == len(parts[0]) and len(text) - end == len(parts[1]) and begin <= end
            if not exact and not self._template.has_generation_tags:
                return (
                    f"the chat template rewrites turn {number} ({turn.role}), and has no generation tags to follow it"
                )
            spans.append((begin, max(begin, end)))
        if any(left[1] > right[0] for left, right in pairwise(spans)):
            return "the chat template does not write the turns in their order"
        return tuple(spans)


def _shortened(roles: tuple[str, ...]) -> tuple[str, ...]:
    """Take turns out of the middle of a long conversation, whole exchanges where the roles alternate.

    What asks for an answer hangs on the last turns. Were all of them rendered, a conversation of a thousand turns would
    be rendered five hundred times, at all its lengths.
    """
    if len(roles) <= _ASKED_AFTER:
        return roles
    head = roles[:1] if roles[0] == SYSTEM else ()
    tail = roles[-(_ASKED_AFTER - 2) :]
    return (*head, *tail[tail.index(USER) if USER in tail else 0 :])


def _common(left: str, right: str) -> int:
    """Return how many characters two texts begin with in common."""
    differing = (number for number, (one, other) in enumerate(zip(left, right, strict=False)) if one != other)
    return next(differing, min(len(left), len(right)))


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Join spans that touch."""
    joined: list[Span] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return tuple(joined)
