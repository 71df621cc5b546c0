"""One model behind the API: its name, its limits, its worker, and how requests become prompts for it."""

from __future__ import annotations

import hashlib
import secrets
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
from colossal_llama2.model.inference import LoadedModel

_COMPLETION_TOKENS = 16  # what the API writes where a completion names no limit


@dataclass(frozen=True)
class ModelService:
    """A model that is served.

    Attributes:
        name: what clients call it.
        loaded: the model.
        worker: what computes with it.
        limits: of requests.
        words: what neither prompts nor answers may hold.
        created: when it was loaded, in seconds since 1970.
    """

    name: str
    loaded: LoadedModel
    worker: Worker
    limits: LimitOptions
    words: WordFilter | None
    created: int

    @property
    def is_chat(self) -> bool:
        """Whether it has a chat template."""
        return bool(getattr(self.loaded.tokenizer, "chat_template", None))

    def describe(self) -> dict[str, Any]:
        """Return the model as /v1/models lists it; the last three fields are this server's own."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "colossal-llama2",
            "context_length": self.loaded.context_length,
            "max_output_tokens": self.limits.max_output_tokens,
            "chat": self.is_chat,
        }

    def chat_prompts(self, fields: ChatFields) -> list[Prompt]:
        """Encode a conversation by the model's chat template, the whole of it: no message is left out.

        Raises:
            ApiError: the model has no template, the template refuses it, or it is too long.
        """
        if not self.is_chat:
            what = f"Model {self.name} has no chat template; use /v1/completions."
            raise ApiError(400, what, "no_chat_template", "model")
        given, newer = fields.max_tokens, fields.max_completion_tokens
        if given is not None and newer is not None and given != newer:
            raise bad_request("max_tokens and max_completion_tokens differ.", "max_completion_tokens")
        messages = [
            {"role": "system" if message.role == "developer" else message.role, "content": message.text()}
            for message in fields.messages
        ]
        try:
            text = self.loaded.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            ids = self.loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        except Exception as error:  # a template is a program of the model's makers, and raises what it likes
            what = f"The model's chat template refuses these messages: {str(error)[:200]}"
            raise bad_request(what, "messages") from None
        limit = newer if newer is not None else given
        texts = [message["content"] for message in messages]
        return [self._prompt(ids, texts, fields, limit or self.limits.max_output_tokens, "messages")]

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
            prompts.append(self._prompt(ids, [text], fields, fields.max_tokens or _COMPLETION_TOKENS, "prompt"))
        if len(prompts) * (fields.n or 1) > self.limits.max_running:
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
        return ReplyText(self.loaded.tokenizer, prompt.ids, self.end_tokens, prompt.stop, self.words)

    @property
    def end_tokens(self) -> frozenset[int]:
        """Tokens that end a text: the tokenizer's eos, and those the model's own generation settings name."""
        own = getattr(getattr(self.loaded.model, "generation_config", None), "eos_token_id", None)
        named = [self.loaded.encoder.eos_token_id, *(own if isinstance(own, list) else [own])]
        return frozenset(int(index) for index in named if index is not None)

    def _prompt(
        self, ids: Sequence[int], texts: Sequence[str], fields: SharedFields, max_tokens: int, param: str
    ) -> Prompt:
        longest = min(self.loaded.context_length - 1, self.limits.max_prompt_tokens or self.loaded.context_length)
        if len(ids) > longest:
            what = f"The prompt has {len(ids)} tokens; this model takes up to {longest}."
            raise bad_request(what, param, "context_length_exceeded")
        if max_tokens > self.limits.max_output_tokens:
            what = f"This server writes up to {self.limits.max_output_tokens} tokens for a request."
            raise bad_request(what, "max_tokens")
        if (fields.n or 1) > self.limits.max_running:
            raise self._too_many()
        return Prompt(
            ids,
            self._options(fields),
            min(max_tokens, self.loaded.context_length - len(ids)),
            fields.stops(),
            self.words is not None and any(self.words.find(text) is not None for text in texts),
        )

    def _options(self, fields: SharedFields) -> list[SamplingOptions]:
        """Return the options of each of n texts: the first has the seed itself, the others seeds made of it."""
        bias = {}
        for key, value in (fields.logit_bias or {}).items():
            if not key.isdecimal() or int(key) >= self.loaded.encoder.num_tokens:
                raise bad_request("logit_bias names what is no token.", "logit_bias")
            bias[int(key)] = value
        seed = secrets.randbits(63) if fields.seed is None else fields.seed
        first = SamplingOptions(
            temperature=1.0 if fields.temperature is None else fields.temperature,
            top_p=1.0 if fields.top_p is None else fields.top_p,
            top_k=fields.top_k or 0,
            presence_penalty=fields.presence_penalty or 0.0,
            frequency_penalty=fields.frequency_penalty or 0.0,
            logit_bias=bias,
            seed=_seed(seed, 0),
        )
        return [replace(first, seed=_seed(seed, number)) for number in range(fields.n or 1)]

    def _too_many(self) -> ApiError:
        return bad_request(f"This server writes up to {self.limits.max_running} texts for a request.", "n")


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
