from __future__ import annotations

import json

import pytest

from colossal_llama2.align.trouble import RULES, START, WATCHED, WINDOW, TroubleWatch, Window

CALM = {
    "kl_per_token": 0.02,
    "length": 20.0,
    "reward": 1.0,
    "entropy": 1.5,
    "ended": 0.95,
    "value_error": 0.1,
    "explained_variance": 0.6,
    "clip_share": 0.1,
    "sampling_gap": 0.001,
}


def window(**last: float) -> Window:
    """Move from calm figures to these, evenly."""
    steps = range(WINDOW)
    recent = [{name: value + (last.get(name, value) - value) * i / (WINDOW - 1) for name, value in CALM.items()}
              for i in steps]  # fmt: skip
    return Window(recent, CALM)


FIRES = {
    "kl_running_away": {"kl_per_token": 1.5},
    "length_hacking": {"length": 60.0, "reward": 3.0},
    "entropy_collapse": {"entropy": -0.4},  # the last third has a mean of 0.00
    "answers_never_end": {"ended": 0.1},
    "value_error_growing": {"value_error": 0.6, "explained_variance": -2.5},
    "steps_too_large": {"clip_share": 0.6},
    "sampler_differs": {"sampling_gap": 0.4},
}
SILENT = {
    "kl_running_away": [{}, {"kl_per_token": 0.2}],
    "length_hacking": [{}, {"length": 60.0}, {"reward": 3.0}, {"length": 60.0, "reward": -1.0}],
    "entropy_collapse": [{}, {"entropy": 0.6}],
    "answers_never_end": [{}, {"ended": 0.6}],
    "value_error_growing": [{}, {"value_error": 0.6}, {"explained_variance": -2.5}],
    "steps_too_large": [{}, {"clip_share": 0.3}],
    "sampler_differs": [{}, {"sampling_gap": 0.05}],
}


def test_every_rule_is_tried() -> None:
    assert set(FIRES) == set(SILENT) == set(RULES)
    assert set(CALM) == set(WATCHED)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_fires(name: str) -> None:
    sentence = RULES[name](window(**FIRES[name]))
    assert sentence is not None
    assert "--" in sentence  # it says what to do


@pytest.mark.parametrize("name", RULES)
def test_a_rule_stays_silent(name: str) -> None:
    for figures in SILENT[name]:
        assert RULES[name](window(**figures)) is None


def test_answers_that_are_learning_to_end_are_no_trouble() -> None:
    recent = [{**CALM, "ended": 0.1 + 0.02 * i} for i in range(WINDOW)]
    assert RULES["answers_never_end"](Window(recent, CALM)) is None


def test_a_large_kl_that_stays_is_not_running_away() -> None:
    recent = [{**CALM, "kl_per_token": 0.8} for _ in range(WINDOW)]
    assert RULES["kl_running_away"](Window(recent, CALM)) is None


def test_trouble_is_said_once_when_it_begins() -> None:
    watch, said = TroubleWatch(), []
    for i in range(3 * WINDOW):
        said.append(watch.look({**CALM, "clip_share": 0.6 if i >= WINDOW else 0.1, "more": 1.0}))
    assert sum(map(len, said)) == 1
    assert said[WINDOW + 3] or said[WINDOW + 2]
    assert list(watch.present) == ["steps_too_large"]


def test_a_resumed_watch_goes_on_as_if_nothing_had_happened() -> None:
    whole, broken = TroubleWatch(), TroubleWatch()
    assert START < 5 < WINDOW
    for i in range(2 * WINDOW):
        figures = {**CALM, "kl_per_token": 0.02 * 1.3**i}
        if i == 5:
            state = json.loads(json.dumps(broken.as_state()))
            broken = TroubleWatch()
            broken.load_state(state)
        assert whole.look(figures) == broken.look(figures)
    assert whole.present
