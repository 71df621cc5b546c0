"""Stages, weights and what is held out: exact, and a prompt is never on two sides."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset.conversation_shares import (
    KEYS,
    STAGES,
    choose_holdout,
    count_copies,
    file_weights,
    parse_holdout,
    stage_keys,
)
from colossal_llama2.dataset.inputs import InputFile, find_inputs
from colossal_llama2.errors import InputError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[InputFile]:
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("zh/a.jsonl", "zh/b.jsonl", "en/c.jsonl", "en/d.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return find_inputs([str(folder / "zh"), str(folder / "en")])[0]


@settings(deadline=None)
@given(shares=st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any))
def test_stages_divide_all_keys(shares: list[int]) -> None:
    text = ",".join(map(str, shares))
    at = 0
    for share, stage in zip(shares, STAGES, strict=True):
        if share:
            low, high = stage_keys(text, stage)
            assert low == at
            assert abs((high - low) - KEYS * share / sum(shares)) < KEYS / 1e12
            at = high
    assert at == KEYS


def test_stages_without_a_split_take_everything() -> None:
    assert {stage_keys("", stage) for stage in STAGES} == {(0, KEYS)}
    assert stage_keys("0.5, 0.5, 1", "prompt") == (KEYS // 2, KEYS)


@pytest.mark.parametrize("text", ["1,2", "1,2,3,4", "a,b,c", "-1,2,3", "0,0,0", "1/0,1,1", ","])
def test_a_split_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--data_split is .*as 2,4,4"):
        stage_keys(text, "sft")


def test_a_stage_without_a_share_is_refused() -> None:
    with pytest.raises(InputError, match="leaves nothing for --type preference"):
        stage_keys("1,0,1", "preference")


def test_shares_to_hold_out() -> None:
    assert [parse_holdout(text) for text in ("1%", "0.01", " 0 ", "0.1%")] == [
        Fraction(1, 100),
        Fraction(1, 100),
        Fraction(0),
        Fraction(1, 1000),
    ]
    for text in ("100%", "1", "-1%", "a", "", "1%%"):
        with pytest.raises(InputError, match="--holdout is"):
            parse_holdout(text)


def test_weights_by_file_stem_name_and_folder(files: list[InputFile]) -> None:
    assert file_weights("", files) == [1, 1, 1, 1]
    assert file_weights("a=2, en/c.jsonl=0.5,d.jsonl=0", files) == [2, 1, Fraction(1, 2), 0]
    assert file_weights("zh=1/3", files) == [Fraction(1, 3), Fraction(1, 3), 1, 1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a", "'a'"),
        ("a=", "'a='"),
        ("a=-1", "'a=-1'"),
        ("=2", "'=2'"),
        ("a=2000", "up to 1000"),
        ("nobody=2", "no input; name one of a, b, c, d"),
        ("zh=2,a=3", "both 'zh' and 'a' of --weights mean zh/a.jsonl"),
    ],
)
def test_weights_that_are_none_are_refused(files: list[InputFile], text: str, reason: str) -> None:
    with pytest.raises(InputError) as caught:
        file_weights(text, files)
    assert reason in str(caught.value)


keys_and_sources = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), min_size=1, max_size=80)


@settings(deadline=None)
@given(pairs=keys_and_sources, percent=st.integers(1, 60), seed=st.integers(0, 5))
def test_a_held_out_prompt_is_in_no_source(pairs: list[tuple[int, int]], percent: int, seed: int) -> None:
    keys = np.array([key for key, _ in pairs], dtype=np.uint64)
    sources = np.array([source for _, source in pairs], dtype=np.int64)
    held = choose_holdout(keys, sources, Fraction(percent, 100), seed)
    assert not set(keys[held].tolist()) & set(keys[~held].tolist())
    for source in set(sources.tolist()):
        distinct = len(set(keys[sources == source].tolist()))
        wanted = max(int(Fraction(percent, 100) * distinct + Fraction(1, 2)), 1) if distinct > 1 else 0
        assert len(set(keys[held & (sources == source)].tolist())) >= wanted
    assert not choose_holdout(keys, sources, Fraction(0), seed).any()


def test_the_held_out_part_is_the_share_where_prompts_differ() -> None:
    keys = np.arange(1000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    sources = np.repeat([0, 1], [900, 100]).astype(np.int64)
    held = choose_holdout(keys, sources, Fraction(1, 50), 3)
    assert [int(held[sources == source].sum()) for source in (0, 1)] == [18, 2]
    others = choose_holdout(keys, sources, Fraction(1, 50), 4)
    assert others.tolist() != held.tolist()
    # It does not depend on the order, nor on what other sources there are.
    back = choose_holdout(keys[::-1], sources[::-1], Fraction(1, 50), 3)
    assert back[::-1].tolist() == held.tolist()


@settings(deadline=None)
@given(pairs=keys_and_sources, quarters=st.lists(st.integers(0, 12), min_size=3, max_size=3), seed=st.integers(0, 5))
def test_copies_add_up_to_the_weight(pairs: list[tuple[int, int]], quarters: list[int], seed: int) -> None:
    keys = np.array([key for key, _ in pairs], dtype=np.uint64)
    sources = np.array([source for _, source in pairs], dtype=np.int64)
    weights = [Fraction(quarter, 4) for quarter in quarters]
    copies = count_copies(keys, sources, weights, seed)
    for source, weight in enumerate(weights):
        own = copies[sources == source]
        assert int(own.sum()) == int(weight * len(own) + Fraction(1, 2))
        assert set(own.tolist()) <= {int(weight), int(weight) + 1}
