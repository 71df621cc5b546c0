from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings, main
from colossal_llama2.dataset.prompt_set import PromptSet
from colossal_llama2.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Path:
    """Give a set of 11 prompts in 2 parts."""
    return prepare(tmp_path_factory.mktemp("prompts"), llama_tokenizer_dir, "prompt")


def prepare(work: Path, tokenizer_dir: Path, kind: Any) -> Path:
    records = [{"prompt": f"question {number}", "completion": "yes", "id": number} for number in range(11)]
    (work / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    options: dict[str, Any] = {"chat_template": "llama2", "max_length": 64, "num_spliced_dataset_bins": 2}
    main(PrepareSetSettings(kind, str(work / "records.jsonl"), tokenizer_dir, work / "set", num_workers=1, **options))
    return work / "set"


def test_every_prompt_is_read_as_it_was_written(made: Path) -> None:
    prompts = PromptSet.open([made])
    assert prompts.num_prompts == 11
    assert prompts.bucket_sizes.sum() == 11
    rows = [prompts.row(index) for index in range(11)]
    assert sorted(row.record["id"] for row in rows) == list(range(11))
    for row in rows:
        assert row.record["prompt"] in row.text
        assert row.ids.dtype == "int32"
        assert 1 <= len(row.ids) <= prompts.longest
    assert "[INST]" in prompts.template


@given(parts=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_any_division_into_rollouts_takes_the_same_prompts(made: Path, parts: list[int]) -> None:
    prompts = PromptSet.open([made])
    whole = prompts.take(7, 0, 0, sum(parts))
    taken: list[tuple[int, int]] = []
    for part in parts:
        epoch, consumed = divmod(len(taken), prompts.num_prompts)
        taken += prompts.take(7, epoch, consumed, part)
    assert taken == whole
    first = prompts.take(7, 0, 0, 11)
    assert sorted(index for _, index in first) == list(range(11))


def test_what_is_no_set_of_prompts_is_refused(tmp_path: Path, llama_tokenizer_dir: Path) -> None:
    with pytest.raises(InputError, match="not a prepared set"):
        PromptSet.open([tmp_path])
    other = prepare(tmp_path, llama_tokenizer_dir, "sft")
    with pytest.raises(InputError, match="type sft"):
        PromptSet.open([other])
