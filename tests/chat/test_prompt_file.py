"""A file of prompts becomes a file of answers, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2 import cli
from colossal_llama2.chat.generate import GenerateSettings, main
from colossal_llama2.chat.generation import GenerationOptions
from colossal_llama2.chat.prompt_file import FileOptions
from colossal_llama2.errors import InputError

GREEDY = GenerationOptions(max_new_tokens=8, do_sample=False)
MESSAGES = [{"role": "user", "content": "the fox"}]


def answered(model: Path, folder: Path, records: list[Any], **more: Any) -> list[dict[str, Any]]:
    source, target = folder / "prompts.jsonl", folder / "answers.jsonl"
    source.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    main(
        GenerateSettings(
            model, files=FileOptions(source, target, 2), options=GREEDY, chat_template="transcript", **more
        )
    )
    return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]


def test_records_keep_their_fields_and_order(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        {"id": 1, "prompt": "今天"},
        {"messages": MESSAGES, "system": "be kind", "tags": ["a"]},
        {"id": 3, "prompt": "the quick brown fox jumps over the lazy dog"},
        {"messages": [{"from": "human", "value": "the fox"}]},
    ]
    found = answered(tiny_model_dir, tmp_path, records)
    assert [{name: one[name] for name in one if name not in ("answer", "generation")} for one in found] == records
    for one in found:
        assert 0 < one["generation"]["answer_tokens"] <= 8
        assert one["generation"]["finish"] in ("limit", "end_token")
    assert found[1]["generation"]["prompt_tokens"] > found[3]["generation"]["prompt_tokens"]
    told = capsys.readouterr()
    assert told.out == ""
    assert "4 answers" in told.err
    again = cli.parse(GenerateSettings, ["--config", str(tmp_path / "answers.settings.yaml")])
    assert (again.options, again.files.output_file) == (GREEDY, tmp_path / "answers.jsonl")


def test_a_text_may_be_asked_as_a_message(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chat, text = answered(tiny_model_dir, tmp_path, [{"messages": MESSAGES}, {"prompt": "the fox"}], chat=True)
    assert (chat["answer"], chat["generation"]) == (text["answer"], text["generation"])
    capsys.readouterr()
    main(GenerateSettings(tiny_model_dir, "the fox", chat=True, chat_template="transcript", options=GREEDY))
    assert capsys.readouterr().out == chat["answer"] + "\n"


@pytest.mark.parametrize(
    "record",
    [
        {"text": "a"}, {"prompt": "a", "messages": MESSAGES}, {"prompt": 1}, {"messages": []}, {"prompt": "fox " * 200},
        {"messages": [*MESSAGES, {"role": "assistant", "content": "b"}]}, {"prompt": "a", "answer": "b"},
    ],
    ids="-".join,
)  # fmt: skip
def test_a_bad_record_is_named_and_nothing_written(
    tiny_model_dir: Path, tmp_path: Path, record: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"prompts\.jsonl:2"):
        answered(tiny_model_dir, tmp_path, [{"prompt": "a"}, record])
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_files_that_do_not_fit_are_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "there.jsonl").write_text("precious")
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    for settings in (
        GenerateSettings(tmp_path, files=FileOptions(source)),
        GenerateSettings(tmp_path, files=FileOptions(source, source, overwrite=True)),
        GenerateSettings(tmp_path, files=FileOptions(source, tmp_path / "there.jsonl")),
        GenerateSettings(tmp_path, files=FileOptions(source, tmp_path)),
        GenerateSettings(tmp_path, files=FileOptions(source, target, batch_size=0)),
        GenerateSettings(tmp_path, "a", files=FileOptions(source, target)),
    ):
        with pytest.raises(InputError) as caught:
            main(settings)
        assert "model" not in caught.value.what
    assert (tmp_path / "there.jsonl").read_text() == "precious"
