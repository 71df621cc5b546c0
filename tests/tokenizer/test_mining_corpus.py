"""Documents come in whole, are held out by their text alone, and lose personal data and nothing else."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.mining_corpus import (
    Document,
    category_weights,
    cut_personal_data,
    parse_weights,
    read_corpus,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    (root / "deep").mkdir(parents=True)
    records = [{"source": "问", "target": "答", "category": "qa"}, {"text": "文"}, {"target": "", "source": ""}]
    lines = "\r\n".join(json.dumps(record) for record in records)
    (root / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n\r\n")
    (root / "deep" / "b.txt").write_text("\n \none\ntwo\n", encoding="utf-8")
    (root / "notes.md").write_text("no text", encoding="utf-8")
    return root


def test_records_and_lines(folder: Path) -> None:
    corpus = read_corpus([folder], holdout=0.0)
    assert corpus.mined == (
        Document("问答", "qa"),
        Document("文", "a"),
        Document("one\n", "b"),
        Document("two\n", "b"),
    )
    assert corpus.held_out == ()
    assert [path.name for path in corpus.files] == ["a.jsonl", "b.txt"]
    assert [path.name for path in corpus.ignored] == ["notes.md"]


def test_held_out_documents_stay_so_when_others_come(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = [f"document {number}" for number in range(1000)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, *texts]), encoding="utf-8")
    first = read_corpus([path], holdout=0.2)
    assert 300 < len(first.held_out) < 500
    assert len(first.held_out) + len(first.mined) == 2000
    assert not set(first.held_out) & set(first.mined)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[::-1][:500]), encoding="utf-8")
    assert set(read_corpus([path], holdout=0.2).held_out) <= set(first.held_out)


def test_bad_lines_are_named_or_listed(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"text": "x"}\n{"text": 3}\nnot json\n', encoding="utf-8")
    with pytest.raises(InputError, match=r'a\.jsonl:2: "text" is a JSON int'):
        read_corpus([folder], holdout=0.0)
    corpus = read_corpus([folder], 0.0, "skip")
    assert len(corpus.refused) == 2
    assert "a.jsonl:3" in corpus.refused[1]


def test_mistakes_in_paths(folder: Path, tmp_path: Path) -> None:
    (folder / "deep" / "empty").mkdir()
    for entries, complaint in (
        ([tmp_path / "absent"], "no such file or folder"),
        ([folder / "deep" / "empty"], "holds no .jsonl or .txt"),
    ):
        with pytest.raises(InputError, match=complaint):
            read_corpus(entries, 0.0)
    (folder / "deep" / "b.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"b\.txt: not UTF-8"):
        read_corpus([folder], 0.0)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(InputError, match="no document to mine"):
        read_corpus([tmp_path / "empty.txt"], 0.0)


@pytest.mark.parametrize(
    ("text", "kind", "left"),
    [
        ("写信给 wang.li+x@mail.example.com 吧", "e_mail", "写信给 \n 吧"),
        ("电话：+86 138-1234-5678。", "telephone", "电话：\n。"),
        ("拨打(010) 6552 9988。", "telephone", "拨打\n。"),
        ("身份证号110101199003078888整", "digits", "身份证号\n整"),
        ("号码１３８１２３４５６７８", "digits", "号码\n"),
        ("见 https://name:secret@host.example/x 处", "url_with_user", "见 \n 处"),
        ("见 https://site.example/users/wangli/posts 处", "url_with_user", "见 \n/posts 处"),
    ],
)
def test_personal_data_is_cut(text: str, kind: str, left: str) -> None:
    counts = Counter[str]()
    assert cut_personal_data(text, counts) == left
    assert counts == {kind: 1}


@pytest.mark.parametrize(
    "text",
    ["在 2018-09-12 发布", "第 3.14 版", "https://example.com/docs/index.html", "a @ b", "共 123456 个", "@装饰器"],
)
def test_what_is_no_personal_data_stays(text: str) -> None:
    assert cut_personal_data(text, Counter()) == text


def test_long_runs_cost_no_more_than_their_length() -> None:
    def seconds(text: str) -> float:
        began = time.process_time()
        cut_personal_data(text, Counter())
        return time.process_time() - began

    for unit in ("a", "a@", "1-", "a.", "http://", "1", "ab://", "+"):
        # 16 times as long may take 16 times as long; gone through again from every place it would be 256 times
        assert seconds(unit * 64_000) < 64 * max(seconds(unit * 4_000), 0.005), unit


@given(st.text())
def test_nothing_but_matches_is_lost(text: str) -> None:
    counts = Counter[str]()
    left = cut_personal_data(text, counts)
    assert left == text or counts


def test_weights_balance_categories() -> None:
    documents = [Document("x" * 100, "large"), Document("x" * 10, "small"), Document("x" * 100, "large")]
    assert category_weights(documents, 0.0, {}) == [1, 1, 1]
    assert category_weights(documents, 1.0, {}) == [100, 2000, 100]
    assert category_weights(documents, 0.5, {}) == [100, 447, 100]
    assert category_weights(documents, 0.0, {"small": 2.5}) == [100, 250, 100]
    for factors in ({"other": 2.0}, {"small": 0.0}, {"small": float("inf")}, {"small": float("nan")}):
        with pytest.raises(InputError, match=r"--category_weights gives .*large, small"):
            category_weights(documents, 0.0, factors)


@pytest.mark.parametrize("factor", [1e17, 1e300, 1e-17, 5e-324])
def test_weights_whose_sums_would_overflow_are_refused(factor: float) -> None:
    documents = [Document("x" * 100, "one"), Document("x" * 100, "two")]
    assert max(category_weights(documents, 0.0, {"one": 1e12})) == 10**14
    with pytest.raises(InputError, match="too far apart"):
        category_weights(documents, 0.0, {"one": factor})


def test_weights_are_read() -> None:
    assert parse_weights(" a=2, b=c=0.5,") == {"a": 2.0, "b=c": 0.5}
    for text in ("a", "a=x", "=3"):
        with pytest.raises(InputError, match="write category=number"):
            parse_weights(text)
