"""Scores for compared answers: a judge reads them twice, in both orders, so that what the place does to them shows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from colossal_llama2.chat.asking import Asker, Lost, Message, Question, gather
from colossal_llama2.chat.making_ledger import Estimate, Made, Tally, about_tokens
from colossal_llama2.chat.model_answers import checked_text, scores_of
from colossal_llama2.chat.progress import Progress
from colossal_llama2.chat.prompt_texts import PromptTexts
from colossal_llama2.dataset.conversation import SYSTEM, USER, Example

_NAMES = {SYSTEM: "System", USER: "User"}
Disagreement = Literal["mean", "drop"]


@dataclass(frozen=True)
class JudgingJob:
    """What is judged, and how.

    Attributes:
        examples: conversations with or without answers; where there are fewer than two, answers are asked for.
        num_answers: how many answers an example has then.
        judge_model: the model that judges; None takes the one that answers.
        judge_temperature: its temperature.
        on_disagreement: what becomes of an example whose best answer depends on the order.
        prompts: the words.
        language: the language of the conversations.
        lowest: lowest score, inclusive.
        highest: highest score, inclusive.
    """

    examples: Sequence[Example]
    num_answers: int
    judge_model: str | None
    judge_temperature: float | None
    on_disagreement: Disagreement
    prompts: PromptTexts
    language: str
    lowest: int = 1
    highest: int = 10


@dataclass(frozen=True)
class _Judged:
    """An example's answers with the scores that they got as they stand and in the other order."""

    example: Example
    answers: list[str]
    repeated: int
    forward: list[float]
    backward: list[float]

    @property
    def scores(self) -> list[float]:
        """The mean of both orders."""
        return [(one + other) / 2 for one, other in zip(self.forward, self.backward, strict=True)]

    @property
    def disagrees(self) -> bool:
        """Whether no answer is a best one in both orders."""
        return not _best(self.forward) & _best(self.backward)


async def judge_examples(job: JudgingJob, asker: Asker, concurrency: int, progress: Progress) -> Made:
    """Score every example's answers; one that stands twice is asked once."""
    tally, records = Tally(), []
    distinct: dict[str, Example] = {}
    for example in job.examples:
        if distinct.setdefault(_key(example), example) is not example:
            tally.repeat("exact")
    progress.begin(len(distinct), "judging")
    jobs = [partial(_judge, job, key, example, asker) for key, example in distinct.items()]
    judged: list[_Judged] = []
    for result in await gather(jobs, concurrency, progress.step):
        if isinstance(result, Lost):
            tally.lose(result)
            continue
        tally.remarks["repeated_answers"] += result.repeated
        if len(result.answers) < 2:
            tally.repeat("all_answers_alike")
            continue
        judged.append(result)
        if result.disagrees and job.on_disagreement == "drop":
            tally.lose(Lost("malformed", "order_decides_the_best"))
            continue
        if len(set(result.scores)) == 1:  # no pair can be made of it, and prepare_dataset.py refuses it
            tally.lose(Lost("malformed", "all_scores_equal"))
            continue
        tally.take("new")
        records.append(_record(result))
    return Made(records, {"examples": tally}, {"position_bias": position_bias(judged)})


def estimate_judging(job: JudgingJob, max_tokens: int) -> Estimate:
    """Return what judging would take."""
    requests = prompt_tokens = 0
    for example in job.examples:
        to_ask = max(0, job.num_answers - len(example.answers)) if len(example.answers) < 2 else 0
        said = about_tokens("".join(turn.content for turn in example.turns))
        answers = about_tokens("".join(answer.content for answer in example.answers)) + to_ask * max_tokens
        requests += to_ask + 2
        prompt_tokens += to_ask * said + 2 * (said + answers + about_tokens(job.prompts.sections["judge"]))
    first = job.examples[0]
    answers_shown = [answer.content for answer in first.answers] if len(first.answers) > 1 else ["...", "..."]
    samples = [] if len(first.answers) > 1 else [_messages(first)]
    return Estimate(
        requests, prompt_tokens, requests * max_tokens, [*samples, _judge_messages(job, first, answers_shown)]
    )


def position_bias(judged: Sequence[_Judged]) -> dict[str, Any]:
    """Tell what the order did: how often it decided the best answer and for which place, and what a place is worth.

    ``first_place_bonus`` is the mean over all examples of the score that the answers at both ends got when they stood
    first, less the one they got when they stood last: 0 for a judge who does not look at the place.
    """
    if not judged:
        return {"examples": 0}
    outcomes: Counter[str] = Counter()
    bonus = 0.0
    for one in judged:
        # The first answer stands first in the forward order and last in the other one; the last answer the other way.
        first, last = one.forward[0] - one.backward[0], one.backward[-1] - one.forward[-1]
        bonus += (first + last) / 2
        if not one.disagrees:
            outcomes["same_best"] += 1
        elif 0 in _best(one.forward) and len(one.answers) - 1 in _best(one.backward):
            outcomes["prefers_first"] += 1
        elif len(one.answers) - 1 in _best(one.forward) and 0 in _best(one.backward):
            outcomes["prefers_last"] += 1
        else:
            outcomes["other"] += 1
    return {
        "examples": len(judged),
        **{name: outcomes[name] for name in ("same_best", "prefers_first", "prefers_last", "other")},
        "first_place_bonus": round(bonus / len(judged), 4),
    }


async def _judge(job: JudgingJob, name: str, example: Example, asker: Asker) -> _Judged:
    answers = [answer.content for answer in example.answers]
    if len(answers) < 2:
        for number in range(len(answers), job.num_answers):
            answers.append(await asker.ask(Question(f"{name}/answer-{number}", _messages(example)), checked_text))
    distinct = list(dict.fromkeys(answers))
    repeated = len(answers) - len(distinct)
    if len(distinct) < 2:
        return _Judged(example, distinct, repeated, [], [])
    forward = await _scores(job, f"{name}/forward", example, distinct, asker)
    backward = await _scores(job, f"{name}/backward", example, distinct[::-1], asker)
    return _Judged(example, distinct, repeated, forward, backward[::-1])


async def _scores(job: JudgingJob, name: str, example: Example, answers: Sequence[str], asker: Asker) -> list[float]:
    question = Question(name, _judge_messages(job, example, answers), job.judge_model, job.judge_temperature)
    return await asker.ask(question, partial(scores_of, count=len(answers), lowest=job.lowest, highest=job.highest))


def _judge_messages(job: JudgingJob, example: Example, answers: Sequence[str]) -> list[Message]:
    conversation = "\n\n".join(f"{_NAMES.get(turn.role, 'Assistant')}: {turn.content}" for turn in example.turns)
    listed = "\n\n".join(f"<answer {number}>\n{text}\n</answer {number}>" for number, text in enumerate(answers, 1))
    text = job.prompts.fill(
        "judge",
        conversation=conversation,
        answers=listed,
        count=len(answers),
        lowest=job.lowest,
        highest=job.highest,
        language=job.language,
    )
    return [{"role": "user", "content": text}]


def _messages(example: Example) -> list[Message]:
    return [{"role": turn.role, "content": turn.content} for turn in example.turns]


def _record(judged: _Judged) -> dict[str, Any]:
    """Write the layout `responses` of docs/datasets.md."""
    return {"messages": _messages(judged.example), "responses": judged.answers, "scores": judged.scores}


def _key(example: Example) -> str:
    """Name an example by what is said in it, the answers included: it keeps its name wherever it stands."""
    spelled = json.dumps([[turn.content for turn in example.turns], [answer.content for answer in example.answers]])
    return f"{example.key:016x}-{hashlib.sha256(spelled.encode()).hexdigest()[:8]}"


def _best(scores: Sequence[float]) -> set[int]:
    return {place for place, score in enumerate(scores) if score == max(scores)}
