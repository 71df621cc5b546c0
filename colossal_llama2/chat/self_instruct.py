"""Instructions in the self-instruct way (arXiv 2212.10560): a pool of tasks that grows by showing a few of them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from colossal_llama2.chat.asking import Asker, Lost, MalformedError, Message, Question, gather
from colossal_llama2.chat.making_ledger import Estimate, Made, Tally, about_tokens
from colossal_llama2.chat.model_answers import find_json, list_entries, text_of, yes_or_no
from colossal_llama2.chat.novelty import KeptTexts
from colossal_llama2.chat.progress import Progress
from colossal_llama2.chat.prompt_texts import PromptTexts
from colossal_llama2.chat.seed_tasks import SeedTask

# The paper's: each request shows 6 tasks of people and 2 of the model's own.
SEEDS_SHOWN: Final = 6
GENERATED_SHOWN: Final = 2
_EXAMPLES_OF_INSTANCES = 2
_ROUNDS_WITHOUT_ANYTHING_NEW = 5


@dataclass(frozen=True)
class PoolJob:
    """How the pool grows.

    Attributes:
        num: texts to keep.
        seeds: what is there at first.
        with_instances: whether each kept text is a task that gets an input and an output.
        prompts: the words.
        language: the language to write.
        per_request: new texts that each request asks for.
        requests_per_round: requests that are made from the same pool; the output depends on it, not on how many are
            under way at a time.
        seed: decides which texts are shown.
    """

    num: int
    seeds: Sequence[SeedTask]
    with_instances: bool
    prompts: PromptTexts
    language: str
    per_request: int
    requests_per_round: int
    seed: int


@dataclass
class _Pool:
    kept: KeptTexts
    generated: list[str]
    tally: Tally
    instances: Tally
    records: list[dict[str, Any]]


async def grow_pool(job: PoolJob, asker: Asker, kept: KeptTexts, concurrency: int, progress: Progress) -> Made:
    """Ask for new texts, round by round, until there are enough of them or nothing new comes any more.

    The requests of a round are all made from the pool as it was before, so that the output does not depend on which
    answer comes first. Each round ends with the inputs and outputs of its tasks, so that a run that is stopped has
    whole records.
    """
    for task in job.seeds:
        kept.add(task.instruction)
    pool = _Pool(kept, [], Tally(), Tally(), [])
    number = idle = 0
    while len(pool.generated) < job.num and idle < _ROUNDS_WITHOUT_ANYTHING_NEW:
        progress.begin(job.requests_per_round, f"round {number}, {len(pool.generated)} of {job.num} texts")
        new, answered, whole = await _round(job, number, asker, pool, concurrency, progress)
        if job.with_instances:
            progress.begin(len(new), f"round {number}, inputs and outputs")
            jobs = [partial(_instance, job, len(pool.generated) + at, text, asker) for at, text in enumerate(new)]
            for made in await gather(jobs, concurrency, progress.step):
                _take_instance(made, pool)
        else:
            pool.records += [{"prompt": text} for text in new]
        pool.generated += new
        if not whole:
            break
        number += 1
        idle = idle + 1 if answered and not new else 0
    name = "instructions" if job.with_instances else "prompts"
    stages = {name: pool.tally} | ({"instances": pool.instances} if job.with_instances else {})
    came_to_an_end = idle == _ROUNDS_WITHOUT_ANYTHING_NEW
    return Made(pool.records, stages, {"rounds": number, "nothing_new_any_more": came_to_an_end})


def estimate_pool(job: PoolJob, max_tokens: int) -> Estimate:
    """Return what the pool would take if all texts that come are new."""
    rounds = -(-job.num // (job.per_request * job.requests_per_round))
    requests = rounds * job.requests_per_round
    samples = [_generating(job, 0, 0, [])]
    prompt_tokens = requests * about_tokens(samples[0][0]["content"])
    if job.with_instances:
        task = job.seeds[0].instruction
        samples += [_about("classify", job, 0, task), _about("input_first", job, 0, task)]
        prompt_tokens += job.num * sum(about_tokens(sample[0]["content"]) for sample in samples[1:])
        requests += 2 * job.num
    return Estimate(requests, prompt_tokens, requests * max_tokens, samples)


async def _round(
    job: PoolJob, number: int, asker: Asker, pool: _Pool, concurrency: int, progress: Progress
) -> tuple[list[str], bool, bool]:
    """Return the new texts of a round, whether anything was answered, and whether no limit came before its end."""
    questions = [
        Question(f"round-{number}/{at}", _generating(job, number, at, pool.generated), others_follow=True)
        for at in range(job.requests_per_round)
    ]
    jobs = [partial(asker.ask, question, list_entries) for question in questions]
    new: list[str] = []
    answers = await gather(jobs, concurrency, progress.step)
    for entries in answers:
        if isinstance(entries, Lost):
            pool.tally.lose(entries, job.per_request)
            continue
        missing = max(0, job.per_request - len(entries))
        pool.tally.lose(Lost("malformed", "fewer_than_asked"), missing)
        if len(entries) > job.per_request:
            pool.tally.remarks["entries_more_than_asked"] += len(entries) - job.per_request
        for entry in entries[: job.per_request]:
            if len(pool.generated) + len(new) == job.num:
                pool.tally.asked += 1
                pool.tally.beyond_num += 1
            elif pool.tally.take(pool.kept.judge_and_keep(entry)):
                new.append(entry)
    answered = not all(isinstance(answer, Lost) for answer in answers)
    whole = not any(isinstance(answer, Lost) and answer.how == "not_reached" for answer in answers)
    return new, answered, whole


async def _instance(job: PoolJob, number: int, instruction: str, asker: Asker) -> tuple[dict[str, str], bool]:
    """Give a task an input and an output; of a classification the output comes first, lest all have one label."""
    name = f"task-{number}"
    question = Question(f"{name}/classify", _about("classify", job, number, instruction))
    classification = await asker.ask(question, yes_or_no)
    section = "output_first" if classification else "input_first"
    fields = await asker.ask(Question(f"{name}/instance", _about(section, job, number, instruction)), _read_instance)
    return {"instruction": instruction, **fields}, classification


def _read_instance(answer: str) -> dict[str, str]:
    found = find_json(answer, dict)
    fields = {"input": text_of(found, "input", may_be_empty=True), "output": text_of(found, "output")}
    if fields["input"] == fields["output"]:
        raise MalformedError("output_repeats_input")
    return fields


def _take_instance(made: tuple[dict[str, str], bool] | Lost, pool: _Pool) -> None:
    if isinstance(made, Lost):
        pool.instances.lose(made)
        return
    pool.instances.take("new")
    pool.instances.remarks["classification" if made[1] else "open_ended"] += 1
    pool.records.append(made[0])


def _generating(job: PoolJob, number: int, at: int, generated: Sequence[str]) -> list[Message]:
    draw = random.Random(f"{job.seed}/round/{number}/{at}")
    shown = draw.sample(list(generated), min(GENERATED_SHOWN, len(generated)))
    people = [task.instruction for task in job.seeds]
    shown += draw.sample(people, min(SEEDS_SHOWN + GENERATED_SHOWN - len(shown), len(people)))
    draw.shuffle(shown)
    examples = "\n".join(f"{place}. {text}" for place, text in enumerate(shown, 1))
    text = job.prompts.fill("generate", examples=examples, count=job.per_request, language=job.language)
    return [{"role": "user", "content": text}]


def _about(section: str, job: PoolJob, number: int, instruction: str) -> list[Message]:
    whole = [task for task in job.seeds if task.output]
    draw = random.Random(f"{job.seed}/examples/{number}")
    shown = draw.sample(whole, min(_EXAMPLES_OF_INSTANCES, len(whole)))
    names = ("output", "input") if section == "output_first" else ("input", "output")
    examples = "\n".join(
        f"{task.instruction}\n{json.dumps({name: getattr(task, name) for name in names}, ensure_ascii=False)}\n"
        for task in shown
    )
    text = job.prompts.fill(section, instruction=instruction, examples=examples, language=job.language)
    return [{"role": "user", "content": text}]
