"""A chat to the ids that ask a model for its next reply, as `--stage sft` trained them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from colossal_llama2.chat.streaming import TextStream
from colossal_llama2.dataset.conversation import ASSISTANT, SYSTEM, USER, Turn
from colossal_llama2.dataset.conversation_markers import markers_of
from colossal_llama2.dataset.conversation_spans import Locator
from colossal_llama2.dataset.conversation_template import find_template
from colossal_llama2.dataset.conversation_tokens import encode_conversations
from colossal_llama2.errors import InputError
from colossal_llama2.model.inference import LoadedModel

ROLES: Final = (SYSTEM, USER, ASSISTANT)


class ChatFormat:
    """A model's chat template with what encodes it.

    What somebody says stays text, whatever it looks like: ``</s>`` in a message cannot end a turn.

    Args:
        loaded: the model.
        chat_template: a jinja file or the name of a ready template; empty for the model's own.

    Attributes:
        end_token_ids: tokens that end a reply: the one that the template ends the assistant's turn with, and those
            of `LoadedModel.end_token_ids`.
        lead: blanks that a reply begins with because the template or the tokenizer puts them there; they are no part of
            its text.

    Raises:
        InputError: there is no template, or none that tells where the assistant's turn ends.
    """

    def __init__(self, loaded: LoadedModel, chat_template: str = "") -> None:
        self._tokenizer, self._encoder = loaded.tokenizer, loaded.encoder
        self._template = find_template(loaded.tokenizer, chat_template)
        self._markers = markers_of(loaded.tokenizer)
        self._locator = Locator(self._template, self._markers)
        self.end_token_ids = self._locator.end_token_ids | loaded.end_token_ids
        self.lead = self._find_lead()

    def encode(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids that ask for the assistant's reply to these turns.

        Raises:
            InputError: the template cannot render them, or writes them so that they cannot be told from what it adds.
        """
        asked = self._locator.locate([turns], learn="none", generation_prompt=True)[0]
        if asked.refusal is not None:
            raise InputError(asked.refusal, remedy="change the messages, or give another --chat_template")
        return [int(index) for index in encode_conversations([asked], self._markers, self._encoder)[0].ids]

    def _find_lead(self) -> str:
        """Look at how a reply of one word is written: what the model generates ahead of the word."""
        turns = [Turn(USER, "question"), Turn(ASSISTANT, "answer")]
        located = self._locator.locate([turns], learn="none")[0]
        if located.refusal is not None:
            return ""
        whole = [int(index) for index in encode_conversations([located], self._markers, self._encoder)[0].ids]
        prompt = self.encode(turns[:1])
        if whole[: len(prompt)] != prompt:
            return ""
        stream = TextStream(self._tokenizer, prompt)
        written = "".join([*(stream.put(index) for index in whole[len(prompt) :]), stream.end()])
        before, found, _ = written.partition("answer")
        return before if found and not before.strip() else ""


def turns_of(messages: Sequence[Mapping[str, Any]]) -> list[Turn]:
    """Return messages ``{"role": ..., "content": ...}`` as turns.

    Raises:
        InputError: there is none, or one has another role, or a content that is no text.
    """
    if not messages:
        raise InputError("there are no messages", remedy="give at least one")
    turns = []
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise InputError(f"message {number} has the role {role!r}", remedy=f"give one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise InputError(f"the content of message {number} is no text", remedy="give a string")
        try:
            content.encode()
        except UnicodeEncodeError:
            raise InputError(f"the content of message {number} is not UTF-8", remedy="give whole characters") from None
        turns.append(Turn(role, content))
    return turns
