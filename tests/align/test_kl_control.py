"""Fixed and adaptive coefficients, worked by hand and resumed."""

from __future__ import annotations

import json

import pytest

from colossal_llama2.align.kl_control import AdaptiveKl, FixedKl, KlControl


def test_a_fixed_coefficient_stays() -> None:
    control: KlControl = FixedKl(0.1)
    control.update(1000.0, 64)
    control.load_state(control.as_state())
    assert control.coef == 0.1


def test_an_adaptive_one_worked_by_hand() -> None:
    control: KlControl = AdaptiveKl(0.1, target=6.0, horizon=1000)
    control.update(6.0, 100)  # on target
    assert control.coef == pytest.approx(0.1)
    control.update(6.6, 100)  # 10% above: a tenth of a tenth more
    assert control.coef == pytest.approx(0.101)
    control.update(600.0, 100)  # the error counts as 20% at most
    assert control.coef == pytest.approx(0.101 * 1.02)
    control.update(0.0, 100)
    assert control.coef == pytest.approx(0.101 * 1.02 * 0.98)
    control.update(-5.0, 100)  # k1 may be negative
    assert control.coef == pytest.approx(0.101 * 1.02 * 0.98 * 0.98)


def test_it_finds_the_target_of_a_policy_whose_kl_falls_with_it() -> None:
    control = AdaptiveKl(1.0, target=2.0, horizon=100)
    for _ in range(400):
        control.update(0.5 / control.coef, 10)
    assert control.coef == pytest.approx(0.25, rel=1e-3)


def test_a_resumed_one_goes_on_as_if_nothing_had_happened() -> None:
    whole, first = AdaptiveKl(0.2, 6.0, 100), AdaptiveKl(0.2, 6.0, 100)
    errors = [9.0, 3.0, 6.1, 40.0]
    for kl in errors:
        whole.update(kl, 7)
    for kl in errors[:2]:
        first.update(kl, 7)
    resumed = AdaptiveKl(0.2, 6.0, 100)
    resumed.load_state(json.loads(json.dumps(first.as_state())))
    for kl in errors[2:]:
        resumed.update(kl, 7)
    assert resumed.coef == whole.coef
