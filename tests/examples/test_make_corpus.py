"""The bundled corpus: what the script writes, consistent, and with nothing held out that was trained on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from examples import make_corpus

CORPUS = Path(make_corpus.HERE) / "corpus"
LANGUAGES = list(make_corpus.LANGUAGES)


def read(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (CORPUS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_running_the_script_again_gives_the_bundled_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["make_corpus.py", "--output_dir", str(tmp_path)])
    make_corpus.main()
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(path.name for path in CORPUS.iterdir())
    assert len(written) == 4
    for name in written:
        assert (tmp_path / name).read_bytes() == (CORPUS / name).read_bytes(), name


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_documents_do_not_occur_in_the_training_part(language: str) -> None:
    training = [make_corpus.text_of(record) for record in read(language)]
    held_out = [make_corpus.text_of(record) for record in read(f"{language}_heldout")]
    assert len(held_out) == make_corpus.HELD_OUT
    assert len({*training, *held_out}) == len(training) + len(held_out)
    everything = "\n\n".join(training)
    assert not [text for text in held_out if text in everything]


@pytest.mark.parametrize("language", LANGUAGES)
def test_records_are_pretraining_records_of_several_categories(language: str) -> None:
    for record in read(language) + read(f"{language}_heldout"):
        assert set(record) == {"source", "target", "category"}
        assert record["target"] == record["target"].strip() != ""
        assert bool(record["source"]) == (record["category"] == f"{language}_questions")
        assert not re.search(r"[\[\]{}|]", make_corpus.text_of(record)), "a template was left unfilled"
    kinds = {record["category"].removeprefix(f"{language}_") for record in read(language)}
    assert kinds == {"knowledge", "stories", "questions"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_document_ends_as_a_text_does(language: str) -> None:
    endings = {make_corpus.text_of(record)[-1] for record in read(language) if "stories" not in record["category"]}
    assert endings <= set('.。"”')


def test_english_agrees() -> None:
    texts = [make_corpus.text_of(record) for record in read("english")]
    assert not [text for text in texts if re.search(r"\b[Aa] [aeiouAEIOU]|\b[Aa]n [^aeiouAEIOU]", text)]
    sentences = [part for text in texts for part in re.split(r"(?<=[.!?]) ", text)]
    assert len(sentences) > 1000
    assert not [sentence for sentence in sentences if sentence.lstrip('"')[:1].islower()]


def test_the_two_languages_state_the_same_facts() -> None:
    told = {language: "\n".join(map(make_corpus.text_of, read(language))) for language in LANGUAGES}
    worlds = {language: make_corpus.World(language).tables["towns"] for language in LANGUAGES}
    stated = {"english": "{} was founded in the year ([0-9]+)", "chinese": "{}建于([0-9]+)年"}
    found = 0
    for key, town in worlds["english"].items():
        for language in LANGUAGES:
            years = re.findall(stated[language].format(worlds[language][key].name), told[language])
            assert set(years) <= {str(town.year)}
            found += len(years)
    assert found >= 5


@pytest.mark.parametrize(
    ("value", "english", "plain", "counted"),
    [(0, "zero", "零", "零"), (2, "two", "二", "两"), (10, "ten", "十", "十"), (12, "twelve", "十二", "十二"),
     (20, "twenty", "二十", "二十"), (35, "thirty-five", "三十五", "三十五"), (99, "ninety-nine", "九十九", "九十九")],
)  # fmt: skip
def test_numbers_are_spelled(value: int, english: str, plain: str, counted: str) -> None:
    assert make_corpus.english_number(value) == english
    assert make_corpus.chinese_number(value) == plain
    assert make_corpus.chinese_count(value) == counted
