"""The command: a table, a JSON file, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.model.inference import load_for_inference
from colossal_llama2.report.evaluate import EvaluateSettings, align_columns, main
from colossal_llama2.report.evaluation import Text, evaluate

RECORDS = [
    {"source": "", "target": "the quick brown fox", "category": "a"},
    {"source": "今天", "target": "天气很好" * 60, "category": "b"},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return path


def test_table_and_results_agree_with_the_library(
    tiny_model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores.json"
    main(EvaluateSettings((tiny_model_dir,), (data,), output=output))
    printed = capsys.readouterr().out
    loaded = load_for_inference(tiny_model_dir)
    texts = [Text(record["target"], record["source"]) for record in RECORDS]
    score = evaluate(loaded.model, loaded.encoder, texts, 1, loaded.context_length)
    (measured,) = json.loads(output.read_text(encoding="utf-8"))["scores"]
    assert measured["bits_per_byte"] == pytest.approx(score.bits_per_byte)
    assert measured["tokens"] == score.tokens > loaded.context_length
    assert measured["scored_bytes"] == 19 + 60 * 12
    assert f"{score.bits_per_byte:.4f}" in printed
    assert f"{score.tokens_per_character:.3f}" in printed
    assert "texts.jsonl" in printed


def test_an_output_that_exists_stays(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    output.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="exists"):
        main(EvaluateSettings((tiny_model_dir,), (data,), output=output))
    assert output.read_text(encoding="utf-8") == "mine"
    main(EvaluateSettings((tiny_model_dir,), (data,), output=output, overwrite=True))
    assert json.loads(output.read_text(encoding="utf-8"))["scores"]


def test_an_empty_target_is_left_out_aloud(
    tiny_model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write('{"source": "fox", "target": "", "category": "a"}\n')
    main(EvaluateSettings((tiny_model_dir,), (data,)))
    captured = capsys.readouterr()
    assert "1 records have an empty target" in captured.err
    assert captured.out.splitlines()[1].split()[2] == "2"


@pytest.mark.parametrize("content", ["", '{"target": ""}\n', '{"source": "a"}\n', "text\n"])
def test_files_without_text_are_refused(tiny_model_dir: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "wrong.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        main(EvaluateSettings((tiny_model_dir,), (path,), output=tmp_path / "scores.json"))
    assert str(path) in str(caught.value)
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize("max_length", [1, 129])
def test_windows_the_model_cannot_take_are_refused(tiny_model_dir: Path, data: Path, max_length: int) -> None:
    with pytest.raises(InputError, match="--max_length"):
        main(EvaluateSettings((tiny_model_dir,), (data,), max_length=max_length))


def test_columns_are_aligned() -> None:
    assert align_columns([("a", "bbb", "c"), ("ccc", "7", "d")]) == "a    bbb  c\nccc    7  d"


def test_several_models_are_compared(tiny_model_dir: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy, same = data.parent / "copy", data.parent / "same.jsonl"
    shutil.copytree(tiny_model_dir, copy)
    shutil.copyfile(data, same)
    main(EvaluateSettings((tiny_model_dir, copy), (data, same)))
    cells = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[:2] for line in cells] == [[str(m), f.name] for m in (tiny_model_dir, copy) for f in (data, same)]
    assert len({tuple(line[2:]) for line in cells}) == 1


def test_a_missing_model_is_noticed_before_any_is_scored(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        main(EvaluateSettings((tiny_model_dir, tmp_path / "absent"), (data,), output=tmp_path / "scores.json"))
    assert not (tmp_path / "scores.json").exists()


def test_an_adapter_is_scored_beside_its_model(
    tiny_model_dir: Path, tiny_adapter_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores.json"
    main(EvaluateSettings((tiny_model_dir,), (data,), (tiny_adapter_dir,), output=output))
    assert f"{tiny_model_dir} + {tiny_adapter_dir}" in capsys.readouterr().out
    base, adapted = json.loads(output.read_text(encoding="utf-8"))["scores"]
    assert (base["adapter"], adapted["adapter"]) == (None, str(tiny_adapter_dir))
    assert base["scored_bytes"] == adapted["scored_bytes"]
    loaded = load_for_inference(tiny_model_dir, adapter_dir=tiny_adapter_dir)
    texts = [Text(record["target"], record["source"]) for record in RECORDS]
    score = evaluate(loaded.model, loaded.encoder, texts, 1, loaded.context_length)
    assert adapted["bits_per_byte"] == pytest.approx(score.bits_per_byte)
    assert abs(adapted["bits_per_byte"] - base["bits_per_byte"]) > 0.01
    with pytest.raises(InputError, match="several models"):
        main(EvaluateSettings((tiny_model_dir, tiny_model_dir), (data,), (tiny_adapter_dir,)))
