"""Prepared corpora: opened together bucket by bucket, and refused when something about them is off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings
from colossal_llama2.dataset.prepare_dataset import main as prepare_set
from colossal_llama2.errors import InputError

Make = Callable[..., tuple[Path, Any]]
ARROW = "data-00000-of-00001.arrow"


@pytest.fixture
def first(tmp_path: Path, numbered_corpus: Make) -> Path:
    (tmp_path / "first").mkdir()
    return numbered_corpus(tmp_path / "first", [(5, 1, 0)] * 8, 3, 6)[0]


@pytest.fixture
def second(tmp_path: Path, numbered_corpus: Make) -> Path:
    (tmp_path / "second").mkdir()
    return numbered_corpus(tmp_path / "second", [(7, 2, 0)] * 5, 2, 8)[0]


def rows_of(corpus: PreparedCorpus) -> list[list[int]]:
    return [corpus.row(index).input_ids.tolist() for index in range(corpus.num_rows)]


def test_bucket_i_is_part_i_of_every_corpus(first: Path, second: Path) -> None:
    corpus, one, two = (PreparedCorpus.open(dirs) for dirs in ([first, second], [first], [second]))
    assert one.bucket_sizes.tolist() == [3, 3, 2]
    assert two.bucket_sizes.tolist() == [3, 2]
    assert corpus.bucket_sizes.tolist() == [6, 5, 2]
    a, b = rows_of(one), rows_of(two)
    assert rows_of(corpus) == [*a[:3], *b[:3], *a[3:6], *b[3:], *a[6:]]
    assert (corpus.max_length, corpus.num_rows, corpus.tokenizer_fingerprint) == (8, 13, "t")
    assert corpus.describe_row(4) == f"row 1 of {second / 'part-00000'}"


def test_single_parts_open_without_the_others(first: Path) -> None:
    whole = rows_of(PreparedCorpus.open([first]))
    shutil.rmtree(first / "part-00000")
    corpus = PreparedCorpus.open([first / "part-00002", first / "part-00001"])
    assert corpus.bucket_sizes.tolist() == [3, 2]
    assert rows_of(corpus) == whole[3:]


def test_the_fingerprint_is_that_of_the_content(first: Path, second: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(first, tmp_path / "moved"))
    one = PreparedCorpus.open([first]).fingerprint
    assert PreparedCorpus.open([moved]).fingerprint == one
    others = [[second], [first, second], [second, first], [first / "part-00000"]]
    assert len({one, *(PreparedCorpus.open(dirs).fingerprint for dirs in others)}) == 5


def edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize("name", ["fingerprint", "bos_token_id", "eos_token_id"])
def test_mixed_tokenizers_are_refused(name: str, first: Path, second: Path) -> None:
    tokenizer = json.loads((second / "manifest.json").read_text())["tokenizer"]
    edit(second, tokenizer={**tokenizer, name: "other"})
    with pytest.raises(InputError, match=f"{second}: was encoded with another tokenizer"):
        PreparedCorpus.open([first, second])


def test_a_part_named_twice_is_refused(first: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(first)
    for again in (first, first / "part-00001", tmp_path / "link"):
        with pytest.raises(InputError, match="named twice"):
            PreparedCorpus.open([first, again])


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", '{"version": 1}', '{"version": 1, "tokenizer": {}}', '{"name": "a web app"}'],
)
def test_a_broken_or_foreign_manifest_is_refused(content: str, first: Path) -> None:
    (first / "manifest.json").write_text(content)
    with pytest.raises(InputError, match="not the ledger of a prepared corpus"):
        PreparedCorpus.open([first])


def test_folders_that_are_no_corpus_are_refused(first: Path, tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    (first / "extra").mkdir()
    for folder, complaint in [
        (tmp_path / "gone", "does not exist"),
        (tmp_path / "void", "not a prepared corpus"),
        (first / "extra", "is no part of the corpus"),
        (first / "part-00009", "does not exist"),
    ]:
        with pytest.raises(InputError, match=complaint):
            PreparedCorpus.open([folder])


def test_another_layout_is_refused(first: Path) -> None:
    edit(first, version=99)
    with pytest.raises(InputError, match="layout version 99"):
        PreparedCorpus.open([first])


def test_missing_truncated_and_foreign_parts_are_refused(first: Path, second: Path) -> None:
    path = first / "part-00001" / ARROW
    whole = path.read_bytes()
    for content in (whole[:-300], whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"part-00001: (cannot be read|holds \d+ rows)"):
            PreparedCorpus.open([first])
    shutil.copyfile(second / "part-00001" / ARROW, path)
    with pytest.raises(InputError, match=r"holds 2 rows and manifest\.json says 3"):
        PreparedCorpus.open([first])
    path.unlink()
    with pytest.raises(InputError, match="part-00001: cannot be read"):
        PreparedCorpus.open([first])


def test_nothing_named_is_refused() -> None:
    with pytest.raises(InputError, match="no prepared corpus is named"):
        PreparedCorpus.open([])


def test_the_part_that_is_the_current_folder_opens(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rows_of(PreparedCorpus.open([first / "part-00001"]))
    monkeypatch.chdir(first / "part-00001")
    assert rows_of(PreparedCorpus.open([Path()])) == expected


def test_a_set_says_its_type_and_is_read_by_those_who_want_it(tmp_path: Path, llama_tokenizer_dir: Path) -> None:
    source = tmp_path / "pairs.jsonl"
    source.write_text('{"prompt": "the fox", "responses": ["jumps", "over", "a dog"], "ranks": [2, 0, 1]}\n' * 3)
    prepare_set(
        PrepareSetSettings(
            type="preference",
            data_input_dirs=str(source),
            tokenizer_dir=llama_tokenizer_dir,
            data_arrow_output_dir=tmp_path / "set",
            chat_template="llama2",
            num_workers=1,
        )
    )
    corpus = PreparedCorpus.open([tmp_path / "set"], types=("preference",))
    assert corpus.chat_templates == ((tmp_path / "set" / "chat_template.jinja").read_text(),)
    ranks = [corpus.row(index).ranks for index in range(corpus.num_rows)]
    assert [found.tolist() for found in ranks if found is not None] == [[2, 0, 1]] * 3
    with pytest.raises(InputError, match=r"is a set of --type preference.*wrote with --type sft"):
        PreparedCorpus.open([tmp_path / "set"])


def test_a_corpus_is_no_set(first: Path) -> None:
    assert PreparedCorpus.open([first]).chat_templates == ()
    assert PreparedCorpus.open([first]).row(0).ranks is None
    with pytest.raises(InputError, match="is a pretraining corpus"):
        PreparedCorpus.open([first], types=("sft",))
