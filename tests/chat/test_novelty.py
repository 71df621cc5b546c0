"""Near means what ROUGE-L says, in scripts with and without blanks between words."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.chat.novelty import KeptTexts, words_of
from colossal_llama2.errors import InputError

TEXTS = st.lists(st.sampled_from(["red", "Green", "blue,", "你", "好吗", "one", "!"]), min_size=1, max_size=12).map(
    " ".join
)


def rouge_l(one: str, other: str) -> float:
    """Compute the F-measure of the longest common subsequence by the textbook's table."""
    a, b = words_of(one), words_of(other)
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if x == y else max(table[i - 1][j], table[i][j - 1])
    common = table[-1][-1]
    precision, recall = common / len(a), common / len(b)
    return 2 * precision * recall / (precision + recall) if common else 0.0


@settings(deadline=None)
@given(TEXTS.filter(words_of), TEXTS.filter(words_of), st.sampled_from([0.3, 0.5, 0.7, 0.9]))
def test_near_is_rouge_l(one: str, other: str, threshold: float) -> None:
    kept = KeptTexts(threshold)
    kept.add(one)
    verdict = kept.judge(other)
    if words_of(one) == words_of(other):
        assert verdict == "exact"
    else:
        assert verdict == ("near" if rouge_l(one, other) >= threshold - 1e-9 else "new")


@pytest.mark.parametrize(
    ("one", "other"),
    [("Write a poem!", "write  a “Poem”"), ("ＡＢＣ　１", "abc 1"), ("你好，世界", "你好世界。"), ("?!", " ?! ")],
)
def test_repeats_are_exact_after_normalisation(one: str, other: str) -> None:
    kept = KeptTexts(1.0)
    assert kept.judge_and_keep(one) == "new"
    assert kept.judge_and_keep(other) == "exact"


def test_a_character_of_han_is_a_word() -> None:
    assert words_of("我爱tea和 Kaffee2！") == ["我", "爱", "tea", "和", "kaffee2"]
    kept = KeptTexts(0.7)
    kept.add("请写一首关于春天的诗歌")
    assert kept.judge("请写一首关于秋天的诗歌") == "near"
    assert kept.judge("怎样才能学会游泳") == "new"


def test_all_kept_texts_count_and_only_they() -> None:
    draw = random.Random(0)
    texts = [" ".join(str(draw.randrange(10_000)) for _ in range(10)) for _ in range(200)]
    kept = KeptTexts(0.7)
    assert [kept.judge_and_keep(text) for text in texts] == ["new"] * 200
    assert [kept.judge(text + " more") for text in texts] == ["near"] * 200
    assert kept.judge("something else") == "new"
    assert kept.judge("something else") == "new", "judging keeps nothing"


def test_long_texts_are_compared_by_their_beginning() -> None:
    words = [f"word{number}" for number in range(400)]
    kept = KeptTexts(0.7)
    kept.add(" ".join(words))
    assert kept.judge(" ".join(words)) == "exact"
    assert kept.judge(" ".join(words[:130])) == "near"
    assert kept.judge(" ".join(words[200:])) == "new"


def test_many_words_have_characters_of_their_own() -> None:
    kept = KeptTexts(1.0)
    for start in range(0, 0xE100, 0x100):
        kept.add(" ".join(map(str, range(start, start + 0x100))))
    assert len(set(kept._characters.values())) == 0xE100
    assert not any("\ud800" <= character <= "\udfff" for character in kept._characters.values())


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.1, float("nan")])
def test_a_threshold_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="--novelty"):
        KeptTexts(threshold)
