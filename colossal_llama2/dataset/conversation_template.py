"""The chat template: where it comes from, and conversations rendered by transformers' own sandbox."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from colossal_llama2.dataset.conversation import Turn
from colossal_llama2.errors import InputError

TEMPLATES_DIR: Final = Path(__file__).parent / "templates"
_GENERATION_TAG: Final = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# What a template can raise by itself: its own complaint, or an operation on something that is not there.
_FAILURES: Final = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: the text; empty where the template refused.
        generated: the parts that stand inside the template's ``generation`` tags, as (begin, end) in characters.
        refusal: why the template refuses the conversation.
    """

    text: str
    generated: tuple[tuple[int, int], ...] = ()
    refusal: str | None = None


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with what it is given beside the messages.

    Attributes:
        source: where it comes from, for people.
        text: the jinja source.
        variables: texts of the special tokens (``bos_token`` ...), and the date where one is given.
    """

    source: str
    text: str
    variables: dict[str, Any]

    @property
    def has_generation_tags(self) -> bool:
        """Whether the template itself says what the assistant writes."""
        return bool(_GENERATION_TAG.search(self.text))

    def render(self, conversations: Sequence[Sequence[Turn]], generation_prompt: bool = False) -> list[Rendered]:
        """Render conversations; one that the template refuses comes back with its reason.

        Args:
            conversations: the conversations.
            generation_prompt: whether to end with what stands before the assistant's next answer.
        """
        try:
            return self._render(conversations, generation_prompt)
        except _FAILURES:
            return [self._render_one(turns, generation_prompt) for turns in conversations]

    def _render_one(self, turns: Sequence[Turn], generation_prompt: bool) -> Rendered:
        try:
            return self._render([turns], generation_prompt)[0]
        except TemplateError as error:
            return Rendered("", refusal=f"the chat template refuses it ({error.message or type(error).__name__})")
        except _FAILURES as error:
            return Rendered("", refusal=f"the chat template fails on it ({type(error).__name__}: {error})")

    def _render(self, conversations: Sequence[Sequence[Turn]], generation_prompt: bool) -> list[Rendered]:
        tagged = self.has_generation_tags
        texts, generated = render_jinja_template(
            conversations=[[{"role": turn.role, "content": turn.content} for turn in turns] for turns in conversations],
            chat_template=self.text,
            add_generation_prompt=generation_prompt,
            return_assistant_tokens_mask=tagged,
            **self.variables,
        )
        if not tagged:
            return [Rendered(text) for text in texts]
        return [
            Rendered(text, tuple((int(begin), int(end)) for begin, end in spans))
            for text, spans in zip(texts, generated, strict=True)
        ]


def load_template(tokenizer: PreTrainedTokenizerFast, named: str, date: str | None) -> ChatTemplate:
    """Find the chat template: the file or ready one that is named, else the tokenizer folder's own.

    Args:
        tokenizer: the tokenizer, with its folder's template and special tokens.
        named: a file, the name of a ready template, or empty.
        date: what a template that asks for today's date is told.

    Raises:
        InputError: there is no such template, or it would render another text tomorrow.
    """
    found = find_template(tokenizer, named)
    if "strftime_now" not in found.text:
        return found
    if date is None or "date_string" not in found.text:
        raise InputError(
            f"the chat template ({found.source}) writes today's date, and the set would be another one tomorrow",
            remedy='pass --template_date "26 Jul 2024" for a template that takes date_string, or another template',
        )
    return replace(found, variables={**found.variables, "date_string": date})


def find_template(tokenizer: PreTrainedTokenizerFast, named: str) -> ChatTemplate:
    """Find the chat template as `load_template` does, for a chat of today: one that writes the date writes today's.

    Raises:
        InputError: there is no such template.
    """
    if named:
        source, text = _read_named(named)
    else:
        source, text = "the tokenizer folder", _of_tokenizer(tokenizer)
    variables = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return ChatTemplate(source, text, variables)


def ready_templates() -> list[str]:
    """Name the templates that come with the package."""
    return sorted(path.stem for path in TEMPLATES_DIR.glob("*.jinja"))


def _read_named(named: str) -> tuple[str, str]:
    path = Path(named)
    if not path.exists() and named in ready_templates():
        path = TEMPLATES_DIR / f"{named}.jinja"
    try:
        return path.name, path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        known = ", ".join(ready_templates())
        raise InputError(
            f"cannot be read ({error.strerror})", path=named, remedy=f"give a jinja file or one of {known}"
        ) from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8", path=named, remedy="convert the file to UTF-8") from None


def _of_tokenizer(tokenizer: PreTrainedTokenizerFast) -> str:
    found: Any = tokenizer.chat_template
    if isinstance(found, list):  # as old folders write several templates
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    if not isinstance(found, str) or not found.strip():
        raise InputError(
            "has no chat template",
            path=tokenizer.name_or_path,
            remedy=f"pass --chat_template with a jinja file or one of {', '.join(ready_templates())}",
        )
    return found
