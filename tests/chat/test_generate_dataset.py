"""The whole command against a server on the loopback: what is written, paid, counted, and never told."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from colossal_llama2 import cli
from colossal_llama2.chat.generate_dataset import main
from colossal_llama2.chat.making_settings import GenerateDatasetSettings
from colossal_llama2.dataset.conversation import Place
from colossal_llama2.dataset.conversation_layouts import read_record, recognise
from colossal_llama2.errors import InputError

if TYPE_CHECKING:
    from tests.chat.conftest import FakeEndpoint

ROOT = Path(__file__).parents[2]
KEY = "sk-very-secret-0123456789"
LAYOUTS = {"conversations": "messages", "instructions": "instruction", "preferences": "responses", "prompts": "prompt"}
QUICK = ("--first_wait", "0", "--model", "m")


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, list[str]]:
    """Write what each kind reads, and return the flags that name it."""
    (tmp_path / "topics.txt").write_text("tea\nchess\nrivers\n", encoding="utf-8")
    seeds = [{"instruction": f"Task {number} of people.", "input": "", "output": "done"} for number in range(7)]
    records = [{"prompt": "Why?"}, {"prompt": "How?", "chosen": "So.", "rejected": "No."}]
    for name, lines in (("seeds", seeds), ("input", records)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    pool = ["--num", "9", "--seeds_file", str(tmp_path / "seeds.jsonl")]
    return {
        "conversations": ["--num", "4", "--turns", "2", "--topics_file", str(tmp_path / "topics.txt")],
        "instructions": pool,
        "prompts": pool,
        "preferences": ["--input_file", str(tmp_path / "input.jsonl")],
    }


def settings(endpoint: FakeEndpoint, kind: str, output: Path, *more: str) -> GenerateDatasetSettings:
    own = ["--kind", kind, "--output", str(output), "--base_url", endpoint.base_url, *QUICK]
    return cli.parse(GenerateDatasetSettings, [*own, *more])


def ledger_of(output: Path) -> dict[str, Any]:
    ledger: dict[str, Any] = json.loads(output.with_suffix(".ledger.json").read_text(encoding="utf-8"))
    return ledger


def check_balance(ledger: dict[str, Any]) -> None:
    """Add up what the command itself has added up, from the file alone."""
    for tally in ledger["stages"].values():
        lost = sum(sum(tally[part].values()) for part in ("duplicates", "malformed", "failed"))
        assert tally["asked"] == tally["kept"] + tally["beyond_num"] + lost
    answers, spent = ledger["answers"], ledger["spent"]
    assert spent["answers"] == answers["usable"] + sum(answers["malformed"].values()) + answers["not_used"]
    assert spent["requests"] == spent["answers"] + sum(spent["failures"].values())


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_what_is_written_can_be_prepared(
    endpoint: FakeEndpoint, flags: dict[str, list[str]], kind: str, tmp_path: Path
) -> None:
    output = tmp_path / "out" / "set.jsonl"
    prices = ("--price_prompt", "2", "--price_completion", "10")
    assert main(settings(endpoint, kind, output, *flags[kind], *prices)) == 0
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(records) == {"conversations": 4, "preferences": 2}.get(kind, 9)
    for record in records:
        layout = recognise(record)
        assert layout == LAYOUTS[kind]
        assert read_record(record, layout, Place(output, 1)).passed_over == ()
    ledger = ledger_of(output)
    check_balance(ledger)
    spent = ledger["spent"]
    assert (spent["answers"], ledger["records"]) == (len(endpoint.answered), len(records))
    said = sum(len(message["content"]) for body in endpoint.answered for message in body["messages"])
    assert abs(spent["prompt_tokens"] - said / 4) <= len(endpoint.answered), "as the endpoint reports them"
    assert spent["cost"] == pytest.approx((2 * spent["prompt_tokens"] + 10 * spent["completion_tokens"]) / 1e6)
    assert {path.name for path in output.parent.iterdir()} == {
        *("set.jsonl", "set.journal", "set.ledger.json", "set.settings.yaml")
    }


def wait_for_company(endpoint: FakeEndpoint) -> None:
    """Hold the first request back until another comes: else a quick answer may never meet one."""
    patience = time.monotonic() + 10
    while endpoint.most_at_once < 2 and time.monotonic() < patience:
        time.sleep(0.001)


@pytest.mark.parametrize("kind", ["conversations", "instructions"])
def test_trouble_changes_nothing_but_the_ledger(
    endpoint: FakeEndpoint, flags: dict[str, list[str]], kind: str, tmp_path: Path
) -> None:
    main(settings(endpoint, kind, tmp_path / "calm.jsonl", *flags[kind], "--concurrency", "1"))
    calm, made = len(endpoint.answered), Counter[str]()
    endpoint.seen.clear()
    endpoint.answered.clear()
    endpoint.most_at_once = 0
    kinds: dict[str, dict[str, Any]] = {
        "status_429": {"status": 429, "headers": {"Retry-After": "0"}},
        "status_500": {"status": 500, "raw": b"<html>"},
        "no_completion": {"raw": b"garbage"},
        "connection": {"hang_up": True},
    }

    def trouble(body: dict[str, Any], before: int) -> dict[str, Any] | None:
        wait_for_company(endpoint)
        chance = hashlib.sha256(json.dumps(body).encode()).digest()[before % 32]
        if chance % 5 == 4 or before > 3:
            return None
        name = sorted(kinds)[chance % 5]
        made[name] += 1
        return kinds[name]

    endpoint.trouble = trouble
    main(settings(endpoint, kind, tmp_path / "storm.jsonl", *flags[kind], "--concurrency", "3", "--max_retries", "9"))
    assert (tmp_path / "storm.jsonl").read_bytes() == (tmp_path / "calm.jsonl").read_bytes()
    spent = ledger_of(tmp_path / "storm.jsonl")["spent"]
    assert len(made) == 4
    assert spent["failures"] == dict(sorted(made.items()))
    assert len(endpoint.answered) == spent["answers"] == calm
    assert 1 < endpoint.most_at_once <= 3
    check_balance(ledger_of(tmp_path / "storm.jsonl"))


def test_a_killed_run_goes_on_and_pays_nothing_twice(
    endpoint: FakeEndpoint, flags: dict[str, list[str]], tmp_path: Path
) -> None:
    whole, output = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    main(settings(endpoint, "instructions", whole, *flags["instructions"]))
    needed = Counter(json.dumps(body) for body in endpoint.answered)
    endpoint.answered.clear()
    endpoint.trouble = lambda body, before: time.sleep(0.05)
    command = [sys.executable, str(ROOT / "tools" / "generate_dataset.py"), "--kind", "instructions", *QUICK]
    command += ["--output", str(output), "--base_url", endpoint.base_url, "--concurrency", "2"]
    command += ["--api_key_env", "TEST_KEY", *flags["instructions"]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TEST_KEY": KEY, "OPENAI_LOG": "debug"}
    log = tmp_path / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        deadline = time.monotonic() + 120
        while len(endpoint.answered) < 9 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert 9 <= len(endpoint.answered) < needed.total(), log.read_text(encoding="utf-8")
    assert not output.exists()
    time.sleep(0.2)
    with output.with_suffix(".journal").open("ab") as file:
        file.write(b'{"name": "round-')  # as a kill in the middle of writing leaves it
    main(settings(endpoint, "instructions", output, *flags["instructions"]))
    assert output.read_bytes() == whole.read_bytes()
    twice = Counter(json.dumps(body) for body in endpoint.answered) - needed
    assert twice.total() <= 2, "only what was under way when it was killed"
    before, after = ledger_of(whole), ledger_of(output)
    assert after["stages"] == before["stages"]
    assert after["answers"] == before["answers"]
    assert f"Bearer {KEY}" in {headers.get("authorization") for headers in endpoint.headers}
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_limits_stop_cleanly_and_more_goes_on(
    endpoint: FakeEndpoint, flags: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, kind = tmp_path / "set.jsonl", "conversations"
    prices = ("--price_prompt", "1", "--price_completion", "1", "--max_tokens", "200")
    assert main(settings(endpoint, kind, output, *flags[kind], *prices, "--max_requests", "7")) == 0
    assert len(endpoint.answered) == 7
    first = ledger_of(output)
    assert first["stopped_by"] == "max_requests"
    assert "stopped by --max_requests" in capsys.readouterr().err
    limit = first["spent"]["cost"] + 0.002
    main(settings(endpoint, kind, output, *flags[kind], *prices, "--max_cost", str(limit)))
    second = ledger_of(output)
    assert (second["stopped_by"], second["spent"]["cost"] <= limit) == ("max_cost", True)
    assert len(endpoint.answered) > 7
    main(settings(endpoint, kind, output, *flags[kind], *prices))
    third = ledger_of(output)
    assert (third["stopped_by"], third["records"]) == (None, 4)
    assert len(endpoint.answered) == 16, "four conversations of two exchanges"
    for ledger in (first, second, third):
        check_balance(ledger)
        tally = ledger["stages"]["conversations"]
        assert tally["asked"] + tally["not_reached"] == 4
    main(settings(endpoint, kind, output, *flags[kind], "--max_tokens", "200"))
    assert len(endpoint.answered) == 16


def test_malformed_answers_are_counted_by_reason(
    endpoint: FakeEndpoint, flags: dict[str, list[str]], tmp_path: Path
) -> None:
    plain = endpoint.say

    def say(body: dict[str, Any]) -> str:
        bad = '"output"' in body["messages"][-1]["content"] and body["seed"] % 2
        return "I am not able to do that." if bad else plain(body)

    endpoint.say = say
    output = tmp_path / "set.jsonl"
    main(settings(endpoint, "instructions", output, *flags["instructions"], "--malformed_retries", "1"))
    ledger = ledger_of(output)
    check_balance(ledger)
    instances = ledger["stages"]["instances"]
    assert instances["asked"] == 9
    assert 0 < ledger["records"] == instances["kept"]
    assert ledger["answers"]["malformed"]["no_json"] > instances["malformed"].get("no_json", 0)


@pytest.mark.parametrize(("status", "said"), [(401, "bad key"), (400, "too long")])
def test_a_mistake_ends_the_run_and_leaves_no_output(
    endpoint: FakeEndpoint, flags: dict[str, list[str]], tmp_path: Path, status: int, said: str
) -> None:
    raw = json.dumps({"error": {"message": said}}).encode()
    endpoint.trouble = lambda body, before: {"status": status, "raw": raw}
    with pytest.raises(InputError, match=said):
        main(settings(endpoint, "prompts", tmp_path / "set.jsonl", *flags["prompts"], "--concurrency", "1"))
    assert len(endpoint.seen) == 1
    assert not (tmp_path / "set.jsonl").exists()
    endpoint.trouble = lambda body, before: None
    assert main(settings(endpoint, "prompts", tmp_path / "set.jsonl", *flags["prompts"])) == 0


def test_an_endpoint_that_is_down_ends_the_run(
    endpoint: FakeEndpoint, flags: dict[str, list[str]], tmp_path: Path
) -> None:
    endpoint.trouble = lambda body, before: {"status": 503}
    output = tmp_path / "set.jsonl"
    more = ("--max_retries", "1", "--max_failures", "2", "--concurrency", "1")
    assert main(settings(endpoint, "conversations", output, *flags["conversations"], *more)) == 1
    ledger = ledger_of(output)
    check_balance(ledger)
    assert (ledger["stopped_by"], ledger["records"], len(endpoint.seen)) == ("max_failures", 0, 4)
    endpoint.trouble = lambda body, before: None
    assert main(settings(endpoint, "conversations", output, *flags["conversations"])) == 0
    assert ledger_of(output)["records"] == 4


def test_a_dry_run_sends_and_writes_nothing(
    endpoint: FakeEndpoint,
    flags: dict[str, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for library in ("openai", "rapidfuzz", "rapidfuzz.distance"):
        monkeypatch.setitem(sys.modules, library, None)
    for kind in LAYOUTS:
        more = ("--dry_run", "--price_prompt", "1", "--api_key_env", "NO_SUCH_KEY")
        assert main(settings(endpoint, kind, tmp_path / "out" / "set.jsonl", *flags[kind], *more)) == 0
        said = capsys.readouterr().out
        assert "[user]" in said
        assert "requests to http://127.0.0.1" in said
        assert "cost at most about" in said
    assert endpoint.seen == []
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"colossal-llama2\[generate\]"):
        main(settings(endpoint, "prompts", tmp_path / "set.jsonl", *flags["prompts"]))


def test_an_output_of_somebody_else_is_not_replaced(
    endpoint: FakeEndpoint, flags: dict[str, list[str]], tmp_path: Path
) -> None:
    output = tmp_path / "set.jsonl"
    output.write_text("mine\n", encoding="utf-8")
    own = settings(endpoint, "prompts", output, *flags["prompts"])
    with pytest.raises(InputError, match="exists already"):
        main(own)
    assert endpoint.seen == []
    main(dataclasses.replace(own, overwrite=True))
    main(own)
    made = output.read_bytes()
    output.write_bytes(made + b'{"prompt": "added by hand"}\n')
    with pytest.raises(InputError, match="exists already"):
        main(own)
    main(dataclasses.replace(own, overwrite=True))
    assert output.read_bytes() == made
    assert len(endpoint.answered) == 4


def test_other_settings_do_not_go_on_with_a_journal(
    endpoint: FakeEndpoint, flags: dict[str, list[str]], tmp_path: Path
) -> None:
    own = settings(endpoint, "prompts", tmp_path / "set.jsonl", *flags["prompts"])
    main(own)
    (tmp_path / "seeds.jsonl").write_text('{"prompt": "Another?"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="another language, seeds_file"):
        main(dataclasses.replace(own, language="French"))


def test_chinese_words_and_lists(endpoint: FakeEndpoint, flags: dict[str, list[str]], tmp_path: Path) -> None:
    main(settings(endpoint, "prompts", tmp_path / "set.jsonl", *flags["prompts"], "--language", "中文"))
    assert "请用中文再写 8 条" in endpoint.seen[0]["messages"][0]["content"]
    records = (tmp_path / "set.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(records) == 9
    assert all("号任务" in record and "、" not in record for record in records)
