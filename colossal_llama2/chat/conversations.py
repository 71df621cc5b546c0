"""Conversations that two roles of the endpoint have with each other, about given topics."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from colossal_llama2.chat.asking import Asker, Lost, MalformedError, Message, Question, gather
from colossal_llama2.chat.making_ledger import Estimate, Made, Tally, about_tokens
from colossal_llama2.chat.model_answers import checked_text
from colossal_llama2.chat.novelty import KeptTexts
from colossal_llama2.chat.progress import Progress
from colossal_llama2.chat.prompt_texts import PromptTexts
from colossal_llama2.chat.spending import Stopped

END: Final = "[END]"


@dataclass(frozen=True)
class ConversationJob:
    """What the conversations are about.

    Attributes:
        num: how many.
        turns: most exchanges of a question and an answer in each.
        topics: conversation i is about topic i, and from the beginning again behind the last.
        personas: who asks; one is drawn for each conversation.
        prompts: the words.
        language: the language to speak.
        seed: decides the draws.
    """

    num: int
    turns: int
    topics: Sequence[str]
    personas: Sequence[str]
    prompts: PromptTexts
    language: str
    seed: int


@dataclass(frozen=True)
class _Conversation:
    messages: list[Message]
    cut_short: str | None


async def make_conversations(
    job: ConversationJob, asker: Asker, kept: KeptTexts, concurrency: int, progress: Progress
) -> Made:
    """Have the conversations, and keep those that are new."""
    progress.begin(job.num, "conversations")
    jobs = [partial(_converse, job, number, asker) for number in range(job.num)]
    tally, records = Tally(), []
    for conversation in await gather(jobs, concurrency, progress.step):
        if isinstance(conversation, Lost):
            tally.lose(conversation)
            continue
        if conversation.cut_short is not None:
            tally.remarks[f"cut_short_{conversation.cut_short}"] += 1
        text = "\n".join(message["content"] for message in conversation.messages)
        if tally.take(kept.judge_and_keep(text)):
            records.append({"messages": conversation.messages})
            tally.remarks["exchanges"] += len(conversation.messages) // 2
    return Made(records, {"conversations": tally})


def estimate_conversations(job: ConversationJob, max_tokens: int) -> Estimate:
    """Return what the conversations would take; every prompt holds all that was said before."""
    words = [about_tokens(text) for text in _system_texts(job, 0)]
    each = 0
    for turn in range(job.turns):
        each += words[0] + words[1] + 2 * turn * max_tokens + words[2] + (2 * turn + 1) * max_tokens
    samples = [_asking_side(job, 0, []), _answering_side(job, 0, [{"role": "user", "content": "..."}])]
    requests = job.num * job.turns * 2
    return Estimate(requests, job.num * each, requests * max_tokens, samples)


async def _converse(job: ConversationJob, number: int, asker: Asker) -> _Conversation:
    """Have one conversation; exchanges that are whole stay if a later one cannot be had."""
    said: list[Message] = []
    for turn in range(job.turns):
        name = f"conversation-{number}/{turn}"
        try:
            question = await asker.ask(Question(f"{name}/user", _asking_side(job, number, said)), checked_text)
            asked, end, _ = question.partition(END)
            if end and not asked.strip():
                if not said:
                    raise MalformedError("ended_at_once")
                return _Conversation(said, None)
            asking: Message = {"role": "user", "content": checked_text(asked)}
            answer = await asker.ask(
                Question(f"{name}/assistant", _answering_side(job, number, [*said, asking])), checked_text
            )
        except (MalformedError, Stopped) as error:
            if not said or isinstance(error, Stopped):
                raise
            return _Conversation(said, error.reason)
        said += [asking, {"role": "assistant", "content": answer}]
        if end:
            break
    return _Conversation(said, None)


def _asking_side(job: ConversationJob, number: int, said: Sequence[Message]) -> list[Message]:
    """Return what the role that asks sees: itself as the assistant, and the assistant as its user."""
    system, opening, _ = _system_texts(job, number)
    other = {"user": "assistant", "assistant": "user"}
    turned: list[Message] = [{"role": other[message["role"]], "content": message["content"]} for message in said]
    return [{"role": "system", "content": system}, {"role": "user", "content": opening}, *turned]


def _answering_side(job: ConversationJob, number: int, said: Sequence[Message]) -> list[Message]:
    return [{"role": "system", "content": _system_texts(job, number)[2]}, *said]


def _system_texts(job: ConversationJob, number: int) -> tuple[str, str, str]:
    values: dict[str, Any] = {
        "topic": job.topics[number % len(job.topics)],
        "persona": random.Random(f"{job.seed}/persona/{number}").choice(job.personas),
        "language": job.language,
        "end": END,
    }
    user, opening, assistant = (job.prompts.fill(name, **values) for name in ("user", "opening", "assistant"))
    return user, opening, assistant
