"""The command, from a folder of text to a list that the tokenizer can be expanded by, and its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.folder import read_folder
from colossal_llama2.tokenizer.loading import read_model
from colossal_llama2.tokenizer.mine_pieces import MineSettings, main
from colossal_llama2.tokenizer.mining_rules import Allowed
from colossal_llama2.tokenizer.piece_list import read_piece_list, sort_pieces

ROOT = Path(__file__).resolve().parents[2]
TALK = "今天天气很好，我们学习语言模型。明天天气不好，他们用Python写2024年的模型。"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    talk = [{"text": f"{TALK * 3}第{number}篇", "category": "talk"} for number in range(40)]
    news = [{"source": "问：", "target": f"“世界”新闻，写信给 li{number}@mail.example.com。"} for number in range(40)]
    for name, records in (("talk", talk), ("news", news)):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def settings(folder: Path, source: Path, **changes: Any) -> MineSettings:
    values: dict[str, Any] = {
        "corpus": (folder,),
        "source_tokenizer_dir": source,
        "num_pieces": 30,
        "output": folder.parent / "out" / "pieces.jsonl",
    }
    return MineSettings(**{**values, **changes})


def test_the_whole_command(corpus: Path, llama_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    english = corpus.parent / "english.txt"
    english.write_text("old text stays “as it is”, naïvely.\n", encoding="utf-8")
    chosen = settings(corpus, llama_tokenizer_dir, keep_identical=(english,))
    main(chosen)

    records = [json.loads(line) for line in chosen.output.read_text(encoding="utf-8").splitlines()]
    report = json.loads(chosen.output.with_suffix(".report.json").read_text(encoding="utf-8"))
    pieces = [record["piece"] for record in records]
    assert len(pieces) == 30
    assert all(record["count"] == sum(record["categories"].values()) for record in records)
    assert not [piece for piece in pieces if set(piece) & set("2024Python“”@")]
    assert "天气" in "".join(pieces)

    model = read_model(read_folder(llama_tokenizer_dir))
    assert sort_pieces(read_piece_list(chosen.output), model, []).new == tuple(pieces)
    assert report["tokens"]["predicted"] == report["tokens"]["sentencepiece"]
    assert report["cut_out"] == {"e_mail": report["mined"]["categories"]["news"]["documents"]}
    total, held = report["mined"]["total"], report["held_out"]["total"]
    assert total["documents"] + held["documents"] == 80
    assert held["documents"] > 0
    assert total["tokens_before"] - total["tokens_after"] == sum(record["saved"] for record in records)
    assert held["per_character_after"] < 0.8 * held["per_character_before"]
    before, after = (
        SentencePieceProcessor(model_proto=m.SerializeToString()) for m in (model, expand_model(model, pieces))
    )
    assert after.encode("old text stays “as it is”  7") == before.encode("old text stays “as it is”  7")
    printed = capsys.readouterr().out
    assert "pieces     30 of 30" in printed
    assert "talk" in printed


def test_the_same_bytes_again(corpus: Path, llama_tokenizer_dir: Path) -> None:
    first = settings(corpus, llama_tokenizer_dir, balance=0.5, category_weights="news=2")
    second = settings(
        corpus, llama_tokenizer_dir, balance=0.5, category_weights="news=2", output=corpus.parent / "b.jsonl"
    )
    main(first)
    main(second)
    assert first.output.read_bytes() == second.output.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        main(first)
    main(settings(corpus, llama_tokenizer_dir, overwrite=True))
    assert first.output.read_bytes() != second.output.read_bytes()


def test_rules_can_be_lifted(corpus: Path, llama_tokenizer_dir: Path) -> None:
    allowed = Allowed(True, True, True, True, True)
    chosen = settings(corpus, llama_tokenizer_dir, allowed=allowed, num_pieces=120, holdout=0.0)
    main(chosen)
    pieces = [item.piece for item in read_piece_list(chosen.output)]
    assert any(set(piece) & set("2024") for piece in pieces)
    assert any(piece.isascii() for piece in pieces)
    assert any("，" in piece and "好" in piece for piece in pieces)


def test_fewer_pieces_than_wanted_are_said(
    corpus: Path, llama_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus / "bad.jsonl").write_text("not json\n")
    (corpus / "readme.md").write_text("no text")
    main(settings(corpus, llama_tokenizer_dir, num_pieces=5000, bad_records="skip", holdout=0.0))
    warnings = capsys.readouterr().err
    assert "pieces were found of 5000" in warnings
    assert "1 lines were no records" in warnings
    assert "1 files are no text" in warnings


def test_mistakes_leave_nothing_behind(corpus: Path, llama_tokenizer_dir: Path, byte_level_tokenizer_dir: Path) -> None:
    quoting = corpus.parent / "quoting.txt"
    quoting.write_text("so much old text that one letter is less than a hundredth of it " * 5 + "好", encoding="utf-8")
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ("--num_pieces is 0", {"num_pieces": 0}),
        ("--min_count is 0", {"min_count": 0}),
        ("--max_piece_length is 1", {"max_piece_length": 1}),
        ("--holdout is 1", {"holdout": 1.0}),
        ("--balance is 2", {"balance": 2.0}),
        ("SentencePiece BPE tokenizers only", {"source": byte_level_tokenizer_dir}),
        ("no such folder", {"source": corpus / "absent"}),
        ("no such file or folder", {"corpus": (corpus / "absent",)}),
        ("no such file or folder", {"keep_identical": (corpus / "absent",)}),
        ("holds nothing that could become a piece", {"min_count": 100_000}),
        ("--category_weights gives 2 to 'other'", {"category_weights": "other=2"}),
        ("every document of the sample of old text", {"keep_identical": (quoting,)}),
    )
    for match, changes in cases:
        chosen = settings(corpus, **{"source": llama_tokenizer_dir, **changes})
        with pytest.raises(InputError, match=match):
            main(chosen)
        assert not chosen.output.parent.exists()
    (corpus / "talk.jsonl").write_text('{"text": "x"}\n[]\n')
    with pytest.raises(InputError, match=r"talk\.jsonl:2: holds a JSON list"):
        main(settings(corpus, llama_tokenizer_dir))


def test_the_list_never_replaces_the_text_it_is_mined_from(corpus: Path, llama_tokenizer_dir: Path) -> None:
    text = (corpus / "talk.jsonl").read_bytes()
    with pytest.raises(InputError, match="is a file of the corpus"):
        main(settings(corpus, llama_tokenizer_dir, output=corpus / "talk.jsonl", overwrite=True))
    assert (corpus / "talk.jsonl").read_bytes() == text
    for folder in (Path(), corpus):
        with pytest.raises(InputError, match="is a folder"):
            main(settings(corpus, llama_tokenizer_dir, output=folder, overwrite=True))


def test_from_the_command_line(corpus: Path, llama_tokenizer_dir: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools" / "mine_pieces.py"), *arguments]
        return subprocess.run(command, cwd=corpus, env={**os.environ}, capture_output=True, text=True, check=False)

    flags = ["--corpus", "talk.jsonl", "news.jsonl", "--source_tokenizer_dir", str(llama_tokenizer_dir)]
    done = run(*flags, "--num_pieces", "9", "--output", "p.jsonl", "--allow_digits", "--holdout", "0.2")
    assert (done.returncode, done.stderr) == (0, "")
    assert len((corpus / "p.jsonl").read_text(encoding="utf-8").splitlines()) == 9
    again = run(*flags, "--num_pieces", "9", "--output", "p.jsonl")
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
