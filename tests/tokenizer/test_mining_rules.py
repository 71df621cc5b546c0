"""Characters are sorted as the rules need them, and the old language is found in a sample that quotes the new one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.mining_rules import (
    ALWAYS_OLD,
    Allowed,
    CharacterKinds,
    find_old_characters,
    kind_of,
    make_rules,
    script_of,
)
from colossal_llama2.tokenizer.mining_state import DIGIT, LETTER, MARK, NEVER, NEW, OTHER
from colossal_llama2.tokenizer.piece_model import PieceModel, parse_piece_model


@pytest.mark.parametrize(
    ("characters", "kind"),
    [
        ("07٣７½Ⅷ①〇", DIGIT),
        ("aé中一ひーกДά्", LETTER),
        ("。，“”…—✅$+_\u200d", OTHER),
        ("\t\n \u3000\u00a0\x00\ue000\uffff", NEVER),
        ("▁", MARK),
    ],
)
def test_every_character_is_of_one_kind(characters: str, kind: int) -> None:
    assert {character: kind_of(character)[0] for character in characters} == dict.fromkeys(characters, kind)


def test_scripts() -> None:
    assert {script_of(letter) for letter in "中ひカーｶ々"} == {"CJK"}
    assert {script_of(letter) for letter in "aéＡ"} == {"LATIN"}
    assert script_of("Д") == "CYRILLIC"
    assert script_of("\u0301") is None  # a combining accent suits any script


def test_flags_of_pieces() -> None:
    kinds = CharacterKinds(ALWAYS_OLD)
    assert kinds.of_piece("▁the")[0] == MARK | LETTER
    assert kinds.of_piece("中国")[0] == LETTER | NEW
    assert kinds.of_piece("。5")[0] == OTHER | DIGIT | NEW
    assert kinds.of_piece("中ひ")[1] == kinds.of_piece("国")[1] > 0
    assert kinds.of_piece("中a")[1] == -1
    assert kinds.of_piece("，")[1] == 0


def test_a_quotation_in_the_sample_forbids_nothing() -> None:
    sample = ["plain English text, naïve ŵ"] * 300 + ["a translation: 团队。"]
    old = find_old_characters(sample, ["中文团队文本。"] * 10)
    assert old >= ALWAYS_OLD | {"ŵ"}
    assert not {"团", "队", "。"} & old


def test_what_is_usual_in_the_sample_is_old() -> None:
    old = find_old_characters(["Война и мир → «да»"] * 5, ["中文 text"])
    assert {"В", "ы", "→", "«"} - {"ы"} <= old
    assert "中" not in old


def test_stray_letters_are_not_old_and_other_characters_are() -> None:
    old = find_old_characters(["x" * 20_000 + " Ω ⊕"], ["中文"])
    assert "Ω" not in old
    assert "⊕" in old


def test_both_languages_in_one_script_share_their_letters() -> None:
    old = find_old_characters(["the old language"] * 3, ["die neue Sprache für größere Wörter łąść"])
    assert "t" in old
    assert "ł" not in old


def test_a_sample_in_the_new_language_is_refused() -> None:
    with pytest.raises(InputError, match=r"every document of the sample of old text holds letters .*CJK"):
        find_old_characters(["中 " + "a" * 200] * 3, ["中文中文"])
    assert find_old_characters([], ["中文"]) == ALWAYS_OLD


@pytest.fixture
def model(piece_model_bytes: Callable[..., bytes]) -> PieceModel:
    return parse_piece_model(piece_model_bytes())


def test_rules_follow_the_base_and_can_be_lifted(model: PieceModel) -> None:
    rules = make_rules(model, Allowed(), None, (10, 2))
    assert rules.max_length == model.trainer_spec.max_sentencepiece_length == 16
    assert (rules.forbidden, rules.required, rules.min_count, rules.min_documents) == (NEVER | DIGIT, NEW, 10, 2)
    assert (rules.one_script, rules.letters_apart, rules.mark_first) == (True, True, True)
    lifted = make_rules(model, Allowed(True, True, True, True, True), 500, (1, 1))
    assert (lifted.max_length, lifted.forbidden, lifted.required) == (128, NEVER, 0)
    assert not lifted.one_script
    assert not lifted.letters_apart
    model.trainer_spec.split_by_whitespace = False
    model.trainer_spec.split_by_unicode_script = False
    loose = make_rules(model, Allowed(), 3, (1, 1))
    assert (loose.max_length, loose.mark_first, loose.letters_apart) == (3, False, False)
