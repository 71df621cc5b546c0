"""Flags that do not go together are refused, and what decides the questions is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from colossal_llama2 import cli
from colossal_llama2.chat.conversations import ConversationJob
from colossal_llama2.chat.making_settings import (
    GenerateDatasetSettings,
    check_settings,
    deciding_settings,
    make_job,
)
from colossal_llama2.errors import InputError


def settings(*flags: str) -> GenerateDatasetSettings:
    plain = ["--base_url", "http://localhost:1/v1", "--model", "m", "--output", "set.jsonl"]
    return cli.parse(GenerateDatasetSettings, [*plain, *flags])


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--kind", "conversations", "--num", "1"], "needs --topics_file"),
        (["--kind", "prompts", "--seeds_file", "x"], "needs --num"),
        (["--kind", "preferences"], "needs --input_file"),
        (["--kind", "preferences", "--input_file", "x", "--num", "3"], "--num is not for --kind preferences"),
        (["--kind", "prompts", "--num", "1", "--seeds_file", "x", "--turns", "9"], "--turns is not for --kind prompts"),
        (["--kind", "prompts", "--num", "0", "--seeds_file", "x"], "begin at 1"),
        (["--kind", "preferences", "--input_file", "x", "--num_answers", "1"], "--num_answers at 2"),
        (["--kind", "preferences", "--input_file", "x", "--output", "x.json"], "does not end with .jsonl"),
        (["--kind", "preferences", "--input_file", "x", "--max_cost", "1"], "without prices"),
        (["--kind", "preferences", "--input_file", "x", "--concurrency", "0"], "--concurrency"),
        (["--kind", "preferences", "--input_file", "x", "--base_url", "host"], "no http address"),
        (
            ["--kind", "preferences", "--input_file", "./set.jsonl", "--overwrite"],
            "is read by --input_file and would be",
        ),
        (["--kind", "prompts", "--num", "1", "--seeds_file", "set.journal"], "is read by --seeds_file and would be"),
        (["--kind", "stories"], "kind"),
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], what: str) -> None:
    with pytest.raises(InputError, match=what):
        check_settings(settings(*flags))


def test_what_decides_the_questions(tmp_path: Path) -> None:
    topics = tmp_path / "topics.txt"
    topics.write_text("tea\n", encoding="utf-8")
    flags = ["--kind", "conversations", "--topics_file", str(topics)]

    def deciding(*more: str) -> dict[str, object]:
        own = settings(*flags, *more)
        return deciding_settings(own, check_settings(own))

    first = deciding("--num", "1")
    assert (
        deciding(
            "--num", "9", "--concurrency", "1", "--max_cost", "0", "--price_prompt", "1", "--price_completion", "1"
        )
        == first
    )
    assert deciding("--num", "1", "--base_url", "https://other/v1", "--api_key_env", "SOME", "--timeout", "9") == first
    for more in (
        ["--model", "n"],
        ["--turns", "5"],
        ["--seed", "1"],
        ["--language", "French"],
        ["--malformed_retries", "9"],
    ):
        assert deciding("--num", "1", *more) != first
    topics.write_text("coffee\n", encoding="utf-8")
    assert deciding("--num", "1") != first


def test_a_record_that_asks_nothing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"prompt": "Why?"}\n{"messages": [{"role": "system", "content": "x"}]}\n', encoding="utf-8")
    own = settings("--kind", "preferences", "--input_file", str(path))
    with pytest.raises(InputError, match=r"in\.jsonl:2: does not end with a turn"):
        make_job(own, check_settings(own))


@pytest.mark.parametrize(("language", "persona"), [("Chinese", "一个好奇的人"), ("Hausa", "a curious person")])
def test_who_asks_if_nobody_is_named(tmp_path: Path, language: str, persona: str) -> None:
    path = tmp_path / "topics.txt"
    path.write_text("tea\n", encoding="utf-8")
    own = settings("--kind", "conversations", "--num", "1", "--topics_file", str(path), "--language", language)
    job = make_job(own, check_settings(own))
    assert isinstance(job, ConversationJob)
    assert job.personas == [persona]
