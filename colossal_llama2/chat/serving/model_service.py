"""One model behind the API: its name, its limits, its worker, and how requests become prompts for it."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from colossal_llama2.chat.generation import encode_prompt
from colossal_llama2.chat.serving.api_errors import ApiError, bad_request
from colossal_llama2.chat.serving.reply_text import ReplyText
from colossal_llama2.chat.serving.request_fields import ChatFields, CompletionFields, SharedFields
from colossal_llama2.chat.serving.sampling import SamplingOptions
from colossal_llama2.chat.serving.settings import LimitOptions
from colossal_llama2.chat.serving.tickets import Job, Prompt, Ticket
from colossal_llama2.chat.serving.word_filter import WordFilter
from colossal_llama2.chat.serving.worker import Worker
from colossal_llama2.chat.talk.chat_format import ChatFormat
from colossal_llama2.chat.talk.history import Fitted, fit_history
from colossal_llama2.chat.talk.reply import ReplyStream
from colossal_llama2.dataset.conversation import SYSTEM, Turn
from colossal_llama2.errors import InputError
from colossal_llama2.model.inference import LoadedModel

_COMPLETION_TOKENS = 16  # what the API writes where a completion names no limit
_MOST_DIGITS = 10  # of a token's number; Python reads no number of thousands


@dataclass(frozen=True)
class ServiceOptions:
    """What all models of a server share.

    Attributes:
        limits: of requests.
        words: what neither prompts nor answers may hold.
        temperature: of requests that name none.
        top_p: likewise.
    """

    limits: LimitOptions
    words: WordFilter | None = None
    temperature: float = 1.0
    top_p: float = 1.0


class ModelService:
    """A model that is served.

    Args:
        name: what clients call it.
        loaded: the model.
        worker: what computes with it.
        options: see `ServiceOptions`.
    """

    def __init__(self, name: str, loaded: LoadedModel, worker: Worker, options: ServiceOptions) -> None:
        self.name, self.loaded, self.worker = name, loaded, worker
        self._limits, self._shared = options.limits, options
        self._created = int(time.time())
        self._format: ChatFormat | None = None
        self._why_no_chat = ""
        try:
            self._format = ChatFormat(loaded)
        except InputError as error:
            self._why_no_chat = error.what

    def describe(self) -> dict[str, Any]:
        """Return the model as /v1/models lists it; the last three fields are this server's own."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "colossal-llama2",
            "context_length": self.loaded.context_length,
            "max_output_tokens": self._limits.max_output_tokens,
            "chat": self._format is not None,
        }

    def chat_prompts(self, fields: ChatFields) -> list[Prompt]:
        """Encode a conversation by the model's chat template.

        Raises:
            ApiError: the model has no template, the template refuses it, or it is too long and `truncation` is not
                ``auto``.
        """
        if self._format is None:
            what = f"Model {self.name} takes no conversations ({self._why_no_chat}); use /v1/completions."
            raise bad_request(what, "model", "no_chat_template")
        given, newer = fields.max_tokens, fields.max_completion_tokens
        if given is not None and newer is not None and given != newer:
            raise bad_request("max_tokens and max_completion_tokens differ.", "max_completion_tokens")
        limit = newer if newer is not None else given
        turns = [Turn(SYSTEM if m.role == "developer" else m.role, m.text()) for m in fields.messages]
        try:
            fitted = self._fitted(self._format, turns, limit, fields.truncation == "auto")
        except InputError as error:
            raise bad_request(f"The conversation cannot be encoded: {error.what}.", "messages") from None
        prompt = self._prompt(fitted.prompt_ids, [turn.content for turn in turns], fields, limit, "messages")
        return [
            replace(
                prompt,
                lead=self._format.lead,
                end_token_ids=self._format.end_token_ids,
                num_dropped=len(fitted.dropped),
            )
        ]

    def _fitted(self, chat_format: ChatFormat, turns: list[Turn], limit: int | None, may_drop: bool) -> Fitted:
        if not may_drop:
            return Fitted(chat_format.encode(turns))
        # Where much is asked for, a quarter of the context is kept free: an answer rarely takes all it may.
        room = min(limit or self._limits.max_output_tokens, self.loaded.context_length // 4)
        return fit_history(chat_format, turns, room, min(self.loaded.context_length, self._longest_prompt() + room))

    def completion_prompts(self, fields: CompletionFields) -> list[Prompt]:
        """Encode each prompt as a document's beginning, or take its tokens as they are.

        Raises:
            ApiError: one is too long, or holds what is no token.
        """
        prompts = []
        for given in fields.prompts():
            if isinstance(given, str):
                ids, text = encode_prompt(self.loaded, given), given
            else:
                if not given or not all(0 <= index < self.loaded.encoder.num_tokens for index in given):
                    raise bad_request("The prompt holds numbers that are no tokens, or nothing.", "prompt")
                ids, text = given, self.loaded.tokenizer.decode(given)
            prompt = self._prompt(ids, [text], fields, fields.max_tokens or _COMPLETION_TOKENS, "prompt")
            prompts.append(replace(prompt, end_token_ids=self.loaded.end_token_ids))
        if len(prompts) * (fields.n or 1) > self._limits.max_running:
            raise self._too_many()
        return prompts

    def submit(self, ticket: Ticket, prompts: Sequence[Prompt]) -> int:
        """Queue the texts of a request and return how many there are.

        Raises:
            ApiError: the queue is full.
        """
        groups: list[list[Job]] = []
        index = 0
        blocked = 0
        for prompt in prompts:
            group = []
            for options in prompt.options:
                if prompt.blocked:
                    ticket.block(index)
                    blocked += 1
                else:
                    group.append(Job(index, ticket, prompt, options, self._text(prompt)))
                index += 1
            if group:
                groups.append(group)
        self.worker.submit(groups, blocked)
        return index

    def _text(self, prompt: Prompt) -> ReplyText:
        stream = ReplyStream(self.loaded.tokenizer, prompt.ids, prompt.end_token_ids, prompt.stop, prompt.lead)
        return ReplyText(stream, self._shared.words)

    def _longest_prompt(self) -> int:
        longest = self.loaded.context_length - 1
        return min(longest, self._limits.max_prompt_tokens or longest)

    def _prompt(
        self, ids: Sequence[int], texts: Sequence[str], fields: SharedFields, limit: int | None, param: str
    ) -> Prompt:
        longest, max_tokens = self._longest_prompt(), limit or self._limits.max_output_tokens
        if len(ids) > longest:
            what = f"The prompt has {len(ids)} tokens; this model takes up to {longest}."
            raise bad_request(what, param, "context_length_exceeded")
        if max_tokens > self._limits.max_output_tokens:
            what = f"This server writes up to {self._limits.max_output_tokens} tokens for a request."
            raise bad_request(what, "max_tokens")
        if (fields.n or 1) > self._limits.max_running:
            raise self._too_many()
        words = self._shared.words
        return Prompt(
            ids,
            self._sampling(fields),
            min(max_tokens, self.loaded.context_length - len(ids)),
            fields.stops(),
            words is not None and any(words.find(text) is not None for text in texts),
        )

    def _sampling(self, fields: SharedFields) -> list[SamplingOptions]:
        """Return the options of each of n texts: the first has the seed itself, the others seeds made of it."""
        bias = {}
        for key, value in (fields.logit_bias or {}).items():
            if not key.isdecimal() or len(key) > _MOST_DIGITS or int(key) >= self.loaded.encoder.num_tokens:
                raise bad_request("logit_bias names what is no token.", "logit_bias")
            bias[int(key)] = value
        seed = secrets.randbits(63) if fields.seed is None else fields.seed
        first = SamplingOptions(
            temperature=self._shared.temperature if fields.temperature is None else fields.temperature,
            top_p=self._shared.top_p if fields.top_p is None else fields.top_p,
            top_k=fields.top_k or 0,
            presence_penalty=fields.presence_penalty or 0.0,
            frequency_penalty=fields.frequency_penalty or 0.0,
            logit_bias=bias,
            seed=_seed(seed, 0),
        )
        return [replace(first, seed=_seed(seed, number)) for number in range(fields.n or 1)]

    def _too_many(self) -> ApiError:
        return bad_request(f"This server writes up to {self._limits.max_running} texts for a request.", "n")


def find_service(services: Sequence[ModelService], name: str) -> ModelService:
    """Return the model of a name.

    Raises:
        ApiError: there is none.
    """
    for service in services:
        if service.name == name:
            return service
    raise ApiError(404, f"The model {name[:60]!r} does not exist.", "model_not_found", "model")


def _seed(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
