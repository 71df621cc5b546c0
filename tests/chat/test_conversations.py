"""Two roles talk in turns, each seeing itself as the assistant; what was had of a conversation is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from colossal_llama2.chat.asking import Asker
from colossal_llama2.chat.conversations import END, ConversationJob, estimate_conversations, make_conversations
from colossal_llama2.chat.making_ledger import Made
from colossal_llama2.chat.novelty import KeptTexts
from colossal_llama2.chat.progress import Progress
from colossal_llama2.chat.prompt_texts import load_prompts

Body = dict[str, Any]
AskWith = Callable[..., tuple[Any, list[Body]]]


def job(num: int, turns: int = 3) -> ConversationJob:
    prompts = load_prompts("conversations", "English", None)
    return ConversationJob(num, turns, ["tea", "chess"], ["a nurse", "a pilot"], prompts, "English", 7)


def is_asking(body: Body) -> bool:
    return "play the one who asks" in body["messages"][0]["content"]


def counting(body: Body) -> str:
    """Say who speaks, about what, and how much was said before."""
    topic = "tea" if "about this: tea" in body["messages"][0]["content"] else "chess"
    return f"asked {topic} {len(body['messages'])}" if is_asking(body) else f"told {body['messages'][-1]['content']}"


def make(
    ask_with: AskWith, say: Callable[[Body], str], the_job: ConversationJob, **limits: Any
) -> tuple[Made, list[Body]]:
    async def work(asker: Asker, progress: Progress) -> Made:
        return await make_conversations(the_job, asker, KeptTexts(1.0), 1, progress)

    return ask_with(say, work, **limits)


def test_who_says_and_sees_what(ask_with: AskWith) -> None:
    made, seen = make(ask_with, counting, job(1, turns=2))
    assert made.records == [
        {
            "messages": [
                {"role": "user", "content": "asked tea 2"},
                {"role": "assistant", "content": "told asked tea 2"},
                {"role": "user", "content": "asked tea 4"},
                {"role": "assistant", "content": "told asked tea 4"},
            ]
        }
    ]
    first, second, third, fourth = seen
    assert [message["role"] for message in third["messages"]] == ["system", "user", "assistant", "user"]
    assert third["messages"][2:] == [
        {"role": "assistant", "content": "asked tea 2"},
        {"role": "user", "content": "told asked tea 2"},
    ]
    assert "{" not in first["messages"][0]["content"]
    assert first["messages"][:2] == third["messages"][:2]
    assert fourth["messages"][1:] == made.records[0]["messages"][:3]
    assert "asks" not in second["messages"][0]["content"], "who answers does not know of the play"


def test_topics_go_round_and_repeats_are_left_out(ask_with: AskWith) -> None:
    made, seen = make(ask_with, counting, job(5, turns=1))
    assert len(made.records) == 2
    assert made.stages["conversations"].as_ledger()["duplicates"] == {"exact": 3}
    personas = {body["messages"][0]["content"].partition("You are ")[2][:6] for body in seen if is_asking(body)}
    assert personas == {"a nurs", "a pilo"}


@pytest.mark.parametrize(
    ("place", "text", "said"),
    [(4, END, ["asked tea 2", "told"]), (2, f"Just this? {END} and more", ["Just this?", "told"])],
)
def test_the_end_word_ends(ask_with: AskWith, place: int, text: str, said: list[str]) -> None:
    def say(body: Body) -> str:
        return "told" if not is_asking(body) else text if len(body["messages"]) == place else counting(body)

    made, _ = make(ask_with, say, job(1))
    assert [message["content"] for message in made.records[0]["messages"]] == said


def test_one_that_ends_at_once_is_malformed(ask_with: AskWith) -> None:
    made, _ = make(ask_with, lambda body: END, job(2))
    assert made.records == []
    assert made.stages["conversations"].malformed == {"ended_at_once": 2}


def test_whole_exchanges_stay_when_a_later_one_fails(ask_with: AskWith) -> None:
    def say(body: Body) -> str:
        tea = "tea" in counting(body)
        return "!timeout" if not is_asking(body) and (len(body["messages"]) > 2 or not tea) else counting(body)

    made, _ = make(ask_with, say, job(2))
    tally = made.stages["conversations"]
    assert [len(record["messages"]) for record in made.records] == [2]
    assert (tally.failed, tally.remarks["cut_short_timeout"]) == ({"timeout": 1}, 1)
    tally.as_ledger()


def test_a_limit_leaves_the_rest_and_a_later_run_goes_on(ask_with: AskWith) -> None:
    made, seen = make(ask_with, counting, job(2), max_requests=9)
    assert len(seen) == 9
    tally = made.stages["conversations"]
    assert (tally.asked, tally.kept, tally.not_reached) == (1, 1, 1)
    tally.as_ledger()
    again, more = make(ask_with, counting, job(2))
    assert (len(more), len(again.records)) == (3, 2)


def test_the_estimate_counts_the_requests(ask_with: AskWith) -> None:
    estimate = estimate_conversations(job(2), 100)
    _, seen = make(ask_with, counting, job(2))
    assert (estimate.requests, estimate.completion_tokens) == (len(seen), 100 * len(seen))
    assert estimate.prompt_tokens > sum(len(str(body["messages"])) for body in seen) / 8
    assert estimate.samples[0] == seen[0]["messages"]
