"""A model that takes part in conversations: its chat template, how it writes, a draft model that helps it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from colossal_llama2.chat.generation import Continuation, GenerationOptions, Watching, continue_text
from colossal_llama2.chat.talk.chat_format import ChatFormat
from colossal_llama2.chat.talk.history import Fitted, fit_history
from colossal_llama2.chat.talk.reply import ReplyStream
from colossal_llama2.dataset.conversation import Turn
from colossal_llama2.errors import InputError
from colossal_llama2.model.inference import LoadedModel, load_for_inference

# A model whose context is short still gets half of it for what was said.
_SHARE_OF_REPLY: Final = 2


@dataclass(frozen=True)
class Reply:
    """What was answered.

    Attributes:
        text: the reply.
        finish: what ended it, see `Continuation`.
        num_tokens: tokens written.
        seconds: how long that took, the reading of the prompt included.
    """

    text: str
    finish: str
    num_tokens: int
    seconds: float


@dataclass(frozen=True)
class Speaker:
    """A model with everything that it talks by.

    Attributes:
        name: what people call it.
        loaded: the model.
        chat_format: its template.
        options: how it writes.
        draft: a model that writes ahead, if any.
    """

    name: str
    loaded: LoadedModel
    chat_format: ChatFormat
    options: GenerationOptions
    draft: Any = None

    @property
    def longest_reply(self) -> int:
        """Most tokens of a reply: `max_new_tokens`, and at most half of the context."""
        return min(self.options.max_new_tokens, max(self.loaded.context_length // _SHARE_OF_REPLY, 1))

    def fit(self, turns: Sequence[Turn]) -> Fitted:
        """Return what the model is asked with, and the turns that did not fit.

        Raises:
            InputError: see `fit_history`.
        """
        return fit_history(self.chat_format, turns, self.longest_reply, self.loaded.context_length)

    def reply(
        self,
        fitted: Fitted,
        attempt: int = 0,
        emit: Callable[[str], object] = lambda part: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Reply:
        """Answer.

        Args:
            fitted: see `fit`.
            attempt: number of the reply in this talk; with a seed each has its own draws, and a second try is another.
            emit: called with each new part of the text.
            cancelled: asked after every step; once it says yes the reply ends there.
        """
        seed = self.options.seed
        options = replace(
            self.options, max_new_tokens=self.longest_reply, seed=None if seed is None else seed + attempt
        )
        stream = ReplyStream(
            self.loaded.tokenizer,
            fitted.prompt_ids,
            self.chat_format.end_token_ids,
            options.stop,
            self.chat_format.lead,
        )
        started = time.perf_counter()
        written: Continuation = continue_text(
            self.loaded, fitted.prompt_ids, options, emit, stream, Watching(self.draft, cancelled)
        )
        return Reply(written.text, written.finish, len(written.ids), time.perf_counter() - started)


def load_speaker(model_dir: Path, device: str = "auto", adapter_dir: Path | None = None) -> tuple[str, LoadedModel]:
    """Load a model to talk to, with the name it is called by.

    Raises:
        InputError: see `load_for_inference`.
    """
    name = model_dir.resolve().name if adapter_dir is None else f"{model_dir.resolve().name}+{adapter_dir.name}"
    return name, load_for_inference(model_dir, device, adapter_dir)


def load_draft(draft_dir: Path, target: LoadedModel) -> LoadedModel:
    """Load a smaller model that writes ahead for another, on the same device.

    Whatever it writes, the other model checks every token in one step and takes those that it would have written.

    Raises:
        InputError: no such model, or its tokens are not those of the other.
    """
    draft = load_for_inference(draft_dir, str(target.device))
    # transformers calls its own `generate` in a way that it warns of, in the middle of the first reply.
    logging.getLogger("transformers.generation.utils").addFilter(_is_no_complaint_about_itself)
    if draft.encoder.fingerprint != target.encoder.fingerprint:
        what = "its tokenizer is not the model's, so it cannot write ahead for it"
        raise InputError(what, path=draft_dir, remedy="give a --draft with the same tokenizer, or none")
    rows, others = (_num_rows(one) for one in (draft, target))
    if rows != others:
        what = f"has {rows} embedding rows and the model {others}, so it cannot write ahead for it"
        raise InputError(what, path=draft_dir, remedy="give a --draft whose vocabulary is padded alike")
    if draft.context_length < target.context_length:
        what = f"takes {draft.context_length} tokens and the model {target.context_length}"
        raise InputError(what, path=draft_dir, remedy="give a --draft with a context as long, or none")
    return draft


def _is_no_complaint_about_itself(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Passing `generation_config` together with")


def _num_rows(loaded: LoadedModel) -> int:
    model: Any = loaded.model
    return int(model.get_input_embeddings().weight.shape[0])
