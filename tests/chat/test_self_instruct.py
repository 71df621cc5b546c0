"""The pool grows by what is new alone, the same whatever the concurrency, and every candidate is accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from colossal_llama2.chat.asking import Asker
from colossal_llama2.chat.making_ledger import Made
from colossal_llama2.chat.novelty import KeptTexts
from colossal_llama2.chat.progress import Progress
from colossal_llama2.chat.prompt_texts import load_prompts
from colossal_llama2.chat.seed_tasks import SeedTask
from colossal_llama2.chat.self_instruct import PoolJob, estimate_pool, grow_pool

Body = dict[str, Any]
AskWith = Callable[..., tuple[Any, list[Body]]]
SEEDS = [SeedTask(f"Seed number {number}.", "in", "out") for number in range(12)]


def job(num: int, with_instances: bool = False, per_request: int = 3, seeds: list[SeedTask] = SEEDS) -> PoolJob:
    prompts = load_prompts("instructions" if with_instances else "prompts", "English", None)
    return PoolJob(num, seeds, with_instances, prompts, "English", per_request, 2, 5)


def grow(
    ask_with: AskWith, say: Callable[[Body], str], the_job: PoolJob, concurrency: int = 1, **limits: Any
) -> tuple[Made, list[Body]]:
    async def work(asker: Asker, progress: Progress) -> Made:
        return await grow_pool(the_job, asker, KeptTexts(0.7), concurrency, progress)

    return ask_with(say, work, **limits)


def fresh(body: Body) -> str:
    """Write three texts that no other request gets; a task is a classification if its number is even."""
    text = body["messages"][0]["content"]
    if "yes or no" in text:
        return "yes" if int(text.partition("alpha")[2].partition(" ")[0]) % 2 == 0 else "no"
    if '"output"' in text:
        return '{"output": "o", "input": "i"}'
    seed = body["seed"]
    return json.dumps([f"alpha{seed + at} beta{seed + at} gamma{seed + at}" for at in range(3)])


def test_texts_are_shown_as_the_paper_says(ask_with: AskWith) -> None:
    made, seen = grow(ask_with, fresh, job(12))
    assert [len(seen), len(made.records)] == [4, 12]
    first, later = seen[0]["messages"][0]["content"], seen[2]["messages"][0]["content"]
    assert first.count("Seed number") == 8, "at first there is nothing else to show"
    assert (later.count("Seed number"), later.count("alpha")) == (6, 2)
    assert first != seen[1]["messages"][0]["content"]
    assert made.records == [{"prompt": text} for text in (record["prompt"] for record in made.records)]


def test_the_output_does_not_depend_on_the_concurrency(
    tmp_path_factory: pytest.TempPathFactory, ask_with: AskWith
) -> None:
    one, _ = grow(ask_with, fresh, job(10, with_instances=True))
    folder = tmp_path_factory.mktemp("other")
    other, seen = ask_with.func(folder / "b.journal", fresh, _work(8))  # type: ignore[attr-defined]
    assert other.records == one.records
    assert len(seen) == 4 + 2 * 10


def _work(concurrency: int) -> Callable[[Asker, Progress], Any]:
    return lambda asker, progress: grow_pool(job(10, with_instances=True), asker, KeptTexts(0.7), concurrency, progress)


def test_every_candidate_is_accounted_for(ask_with: AskWith) -> None:
    answers = iter(
        [
            json.dumps(
                [
                    "Seed, number 3",
                    "Write about the sea and the wind tonight",
                    "Write about the sea and the sun tonight",
                ]
            ),
            json.dumps(["one two"]),
            "I would rather not.",
            "!timeout",
            json.dumps(["red", "green", "blue", "more than asked"]),
            json.dumps(["left over", "red", "x"]),
        ]
    )
    made, _ = grow(ask_with, lambda body: next(answers), job(5))
    assert [record["prompt"] for record in made.records] == [
        "Write about the sea and the wind tonight", "one two", "red", "green", "blue",
    ]  # fmt: skip
    ledger = made.stages["prompts"].as_ledger()
    assert ledger | {"remarks": 0} == {
        "asked": 18,
        "kept": 5,
        "duplicates": {"exact": 1, "near": 1},
        "malformed": {"fewer_than_asked": 2, "no_list": 3},
        "failed": {"timeout": 3},
        "beyond_num": 3,
        "not_reached": 0,
        "remarks": 0,
    }
    assert ledger["remarks"] == {"entries_more_than_asked": 1}


def test_nothing_new_ends_the_run(ask_with: AskWith) -> None:
    made, seen = grow(ask_with, lambda body: json.dumps(["always", "the", "same"]), job(100))
    assert made.findings["nothing_new_any_more"]
    assert (len(made.records), len(seen)) == (3, 2 * 6)
    made.stages["prompts"].as_ledger()


def test_tasks_get_inputs_and_outputs(ask_with: AskWith) -> None:
    made, seen = grow(ask_with, fresh, job(6, with_instances=True))
    assert len(made.records) == 6
    assert all(list(record) == ["instruction", "input", "output"] for record in made.records)
    remarks = made.stages["instances"].remarks
    assert remarks["classification"] + remarks["open_ended"] == 6
    output_first = [body for body in seen if "one of a few labels" in body["messages"][0]["content"]]
    assert len(output_first) == remarks["classification"] > 0
    assert '{"output": "out", "input": "in"}' in output_first[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"input": "same", "output": "same"}', "output_repeats_input"),
        ('{"input": "x"}', "no_output"),
        ("x", "no_json"),
        ('{"input": "x", "output": " "}', "empty"),
    ],
)
def test_instances_of_no_use(ask_with: AskWith, answer: str, reason: str) -> None:
    made, _ = grow(
        ask_with, lambda body: answer if '"output"' in str(body) else fresh(body), job(6, with_instances=True)
    )
    assert made.records == []
    assert made.stages["instances"].as_ledger()["malformed"] == {reason: 6}
    assert made.stages["instructions"].kept == 6


def test_a_stopped_run_has_whole_records_and_more_can_be_asked_for(ask_with: AskWith) -> None:
    part, seen = grow(ask_with, fresh, job(6, with_instances=True), max_requests=7)
    assert len(seen) == 7
    assert 0 < len(part.records) < 6
    assert part.stages["instances"].not_reached == 6 - len(part.records)
    whole, more = grow(ask_with, fresh, job(6, with_instances=True))
    assert whole.records[: len(part.records)] == part.records
    assert len(more) == 2 + 12 - 7
    longer, added = grow(ask_with, fresh, job(9, with_instances=True))
    assert longer.records[:6] == whole.records
    assert len(added) == 2 + 6


def test_a_request_that_failed_is_not_asked_again_since_others_followed(ask_with: AskWith) -> None:
    calls = iter(range(100))
    made, _ = grow(ask_with, lambda body: "!timeout" if next(calls) == 1 else fresh(body), job(9))
    again, seen = grow(ask_with, fresh, job(9))
    assert seen == []
    assert again.records == made.records
    assert again.stages["prompts"].failed == {"timeout": 3}


def test_the_estimate_counts_the_requests(ask_with: AskWith) -> None:
    _, seen = grow(ask_with, fresh, job(6, with_instances=True))
    assert estimate_pool(job(6, with_instances=True), 10).requests == len(seen)
    assert estimate_pool(job(6), 10).requests == 2


def test_a_single_seed_is_enough(ask_with: AskWith) -> None:
    made, _ = grow(ask_with, fresh, job(3, seeds=[SeedTask("Alone.")]))
    assert len(made.records) == 3
