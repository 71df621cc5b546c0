"""Answers are judged in both orders, and what the order does is measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from colossal_llama2.chat.asking import Asker
from colossal_llama2.chat.judging import JudgingJob, estimate_judging, judge_examples, position_bias
from colossal_llama2.chat.making_ledger import Made
from colossal_llama2.chat.progress import Progress
from colossal_llama2.chat.prompt_texts import load_prompts
from colossal_llama2.dataset.conversation import ASSISTANT, SYSTEM, USER, Answer, Example, Turn

Body = dict[str, Any]
AskWith = Callable[..., tuple[Any, list[Body]]]
WORTH = {"good": 9, "fair": 5, "bad": 2}


def example(*answers: str, prompt: str = "Why?") -> Example:
    return Example((Turn(USER, prompt),), tuple(Answer(text) for text in answers))


def job(*examples: Example, **fields: Any) -> JudgingJob:
    plain = JudgingJob(examples, 3, "judge", 0.0, "mean", load_prompts("preferences", "English", None), "English")
    return replace(plain, **fields)


def judge(ask_with: AskWith, say: Callable[[Body], str], the_job: JudgingJob, **limits: Any) -> tuple[Made, list[Body]]:
    async def work(asker: Asker, progress: Progress) -> Made:
        return await judge_examples(the_job, asker, 1, progress)

    return ask_with(say, work, **limits)


def shown(body: Body) -> list[str]:
    return re.findall(r"<answer \d+>\n(.*)\n</answer", body["messages"][0]["content"])


def honest(body: Body) -> str:
    return json.dumps({"scores": [WORTH[text] for text in shown(body)]})


def test_an_honest_judge(ask_with: AskWith) -> None:
    made, seen = judge(ask_with, honest, job(example("bad", "good", "fair")))
    assert made.records == [
        {"messages": [{"role": "user", "content": "Why?"}], "responses": ["bad", "good", "fair"], "scores": [2, 9, 5]}
    ]
    assert [shown(body) for body in seen] == [["bad", "good", "fair"], ["fair", "good", "bad"]]
    assert {(body["model"], body["temperature"]) for body in seen} == {("judge", 0.0)}
    bias = made.findings["position_bias"]
    assert (bias["same_best"], bias["first_place_bonus"]) == (1, 0)


@pytest.mark.parametrize(("place", "name", "bonus"), [(0, "prefers_first", 8.0), (-1, "prefers_last", -8.0)])
def test_a_judge_who_looks_at_the_place(ask_with: AskWith, place: int, name: str, bonus: float) -> None:
    def say(body: Body) -> str:
        scores = [1] * len(shown(body))
        scores[place] = 9
        return json.dumps(scores)

    made, _ = judge(ask_with, say, job(example("bad", "good"), example("good", "fair"), example("bad", "fair", "good")))
    assert [record["scores"] for record in made.records] == [[5, 1, 5]]
    assert made.stages["examples"].as_ledger()["malformed"] == {"all_scores_equal": 2}
    bias = made.findings["position_bias"]
    assert bias == {
        "examples": 3,
        **dict.fromkeys(("same_best", "prefers_first", "prefers_last", "other"), 0),
        name: 3,
        "first_place_bonus": bonus,
    }


def test_disagreement_can_drop_the_record(ask_with: AskWith) -> None:
    made, _ = judge(ask_with, lambda body: "[9, 1]", job(example("bad", "good"), on_disagreement="drop"))
    assert made.records == []
    assert made.stages["examples"].as_ledger()["malformed"] == {"order_decides_the_best": 1}
    assert made.findings["position_bias"]["prefers_first"] == 1, "it is still measured"


def test_answers_are_asked_for_where_there_are_too_few(ask_with: AskWith) -> None:
    texts = iter(["good", "fair", "bad", "fair", "fair"])
    one = Example((Turn(SYSTEM, "Be brief."), Turn(USER, "a"), Turn(ASSISTANT, "b"), Turn(USER, "c")))
    made, seen = judge(
        ask_with, lambda body: honest(body) if shown(body) else next(texts), job(one, example("bad", prompt="d"))
    )
    assert [record["responses"] for record in made.records] == [["good", "fair", "bad"], ["bad", "fair"]]
    assert seen[0]["model"] == "m"
    assert [message["role"] for message in seen[0]["messages"]] == ["system", "user", "assistant", "user"]
    assert len({body["seed"] for body in seen[:3]}) == 3
    assert made.stages["examples"].remarks["repeated_answers"] == 1
    assert made.records[0]["messages"] == seen[0]["messages"]


def test_answers_that_are_all_alike_are_counted(ask_with: AskWith) -> None:
    made, seen = judge(ask_with, lambda body: "same", job(example()))
    assert (made.records, len(seen)) == ([], 3)
    assert made.stages["examples"].as_ledger()["duplicates"] == {"all_answers_alike": 1}


def test_repeats_are_not_paid_for_and_other_answers_are_no_repeat(ask_with: AskWith) -> None:
    examples = (example("bad", "good"), example("bad", "good"), example("bad", "fair"))
    made, seen = judge(ask_with, honest, job(*examples))
    assert (len(made.records), len(seen)) == (2, 4)
    assert made.stages["examples"].as_ledger()["duplicates"] == {"exact": 1}


def test_a_judge_who_cannot_count(ask_with: AskWith) -> None:
    made, seen = judge(ask_with, lambda body: "[1]", job(example("bad", "good")), malformed_retries=2)
    assert len(seen) == 3
    assert made.stages["examples"].as_ledger()["malformed"] == {"wrong_number_of_scores": 1}
    assert position_bias([]) == {"examples": 0}


def test_records_that_are_added_later_are_paid_for_alone(ask_with: AskWith) -> None:
    judge(ask_with, honest, job(example("bad", "good")))
    made, seen = judge(ask_with, honest, job(example("fair", "good"), example("bad", "good")))
    assert (len(made.records), len(seen)) == (2, 2)


def test_the_estimate_counts_the_requests(ask_with: AskWith) -> None:
    the_job = job(example("bad", "good"), example("good", prompt="b"))
    texts = iter(["bad", "fair"])
    _, seen = judge(ask_with, lambda body: honest(body) if shown(body) else next(texts), the_job)
    assert estimate_judging(the_job, 10).requests == len(seen) == 6
