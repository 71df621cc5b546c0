"""The rule on synthetic curves: silent while a noisy curve still falls, soon heard when it is flat."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.errors import InputError
from colossal_llama2.train.flatness import MOST_BLOCKS, FlatnessWatch, LossCurve, judge

SEEDS = 20


def alarms(truth: Callable[[int], float], noise: float, steps: int) -> list[int]:
    """Run the rule along a curve with independent noise, seed after seed; return the steps at which it spoke."""
    found = []
    for seed in range(SEEDS):
        draws = np.random.default_rng(seed).normal(0.0, noise, steps)
        curve = LossCurve()
        for step in range(steps):
            if curve.add(truth(step) + float(draws[step])) and judge(curve.means, curve.size) is not None:
                found.append(step + 1)
                break
    return found


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.4])
@pytest.mark.parametrize(
    "truth",
    [
        pytest.param(lambda step: 6 - 3 * step / 600, id="a line"),
        pytest.param(lambda step: 4 - 0.4 * step / 600, id="a slow line"),
        pytest.param(lambda step: 3 + 3 * math.exp(-step / 200), id="exponential"),
        pytest.param(lambda step: 6 - 0.5 * math.log(1 + step), id="logarithmic"),
        pytest.param(lambda step: 2 + 4 * (step + 1) ** -0.25, id="a power"),
    ],
)
def test_a_curve_that_still_falls_is_let_be(truth: Callable[[int], float], noise: float) -> None:
    assert len(alarms(truth, noise, 600)) <= 1


@pytest.mark.parametrize(
    ("truth", "flat_from", "noise", "latest"),
    [
        pytest.param(lambda step: 6 - 3 * min(step, 150) / 150, 150, 0.02, 230, id="a kink"),
        pytest.param(lambda step: 3 + 3 * math.exp(-step / 30), 120, 0.02, 300, id="exponential"),
        pytest.param(lambda step: 3 + 3 * math.exp(-step / 30), 120, 0.05, 600, id="exponential and noisy"),
        pytest.param(lambda step: 5.0, 0, 0.02, 300, id="never fell"),
    ],
)
def test_flatness_is_heard_soon(truth: Callable[[int], float], flat_from: int, noise: float, latest: int) -> None:
    heard = alarms(truth, noise, latest)
    assert len(heard) == SEEDS
    assert min(heard) >= flat_from


def test_a_loss_that_rises_has_stopped_paying_too() -> None:
    assert alarms(lambda step: 6 - 3 * min(step, 150) / 150 + max(step - 150, 0) * 0.001, 0.02, 300)


def test_noise_that_hides_everything_is_no_verdict() -> None:
    assert alarms(lambda step: 6 - 3 * min(step, 150) / 150, 1.0, 600) == []


@given(
    st.lists(st.floats(0.0, 20.0, width=32), min_size=1, max_size=700),
    st.integers(0, 700),
)
@settings(max_examples=60, deadline=None)
def test_a_curve_goes_on_from_a_checkpoint_as_if_nothing_had_happened(losses: list[float], cut: int) -> None:
    whole, part = LossCurve(), LossCurve()
    for loss in losses:
        whole.add(loss)
    for loss in losses[:cut]:
        part.add(loss)
    part = LossCurve.from_state(json.loads(json.dumps(part.as_state())))
    for loss in losses[cut:]:
        part.add(loss)
    assert part == whole
    assert len(whole.means) < MOST_BLOCKS
    assert len(whole.means) * whole.size + whole.open_steps == len(losses)
    total = sum(whole.means) * whole.size + whole.open_sum
    assert total == pytest.approx(sum(losses), rel=1e-9, abs=1e-9)


def test_a_curve_of_another_version_is_refused() -> None:
    with pytest.raises(InputError, match="another version"):
        LossCurve.from_state({**LossCurve().as_state(), "version": 9})


@pytest.mark.parametrize("ends", [True, False])
def test_it_is_said_once_and_not_during_the_warm_up(ends: bool, capsys: pytest.CaptureFixture[str]) -> None:
    watch = FlatnessWatch(warmup_steps=250, ends=ends, model_dir=Path("out/modeling"))
    for step in range(1, 401):
        watch.after_step(step, 5.0)
        assert watch.over == (ends and step >= 252), step
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step 252: the embeddings-only stage has stopped paying: in 252 steps the loss")
    assert "--load_checkpoint out/modeling" in line
    assert ("the stage ends here" in line) == ends
