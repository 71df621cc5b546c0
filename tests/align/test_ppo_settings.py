from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.align.ppo_settings import PpoSettings, check_ppo, check_ranks
from colossal_llama2.cli import parse
from colossal_llama2.errors import InputError

LEAST = ["--pretrained", "base", "--dataset", "prompts", "--save_dir", "out", "--reward_function", "a:b"]


def settings(*flags: object) -> PpoSettings:
    return parse(PpoSettings, [*LEAST, *map(str, flags)])


def test_the_ancestors_defaults_stand() -> None:
    given = settings()
    check_ppo(given)
    assert (given.ppo.kl_coef, given.ptx.ptx_coef, given.ppo.eps_clip, given.ppo.value_clip) == (0.1, 0.9, 0.2, 0.4)
    assert (given.ppo.gamma, given.ppo.lam) == (1.0, 0.95)
    assert given.optimizer.lr == 1e-5
    assert given.critic_dir == Path("base")


def test_the_critic_starts_from_the_reward_model_unless_it_is_named() -> None:
    assert settings("--reward_model", "rm").critic_dir == Path("rm")
    assert settings("--reward_model", "rm", "--critic", "v").critic_dir == Path("v")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--temperature", 0), "--temperature"),
        (("--lam", 1.5), "--lam"),
        (("--ptx_coef", 27.8), "no share"),
        (("--adaptive_kl", 6, "--kl_coef", 0), "steered"),
        (("--plugin", "gemini_auto", "--mixed_precision", "bf16"), "gemini_auto"),
        (("--plugin", "3d", "--pp", 2), "--pp 2"),
        (("--accumulation_steps", 2), "means nothing"),
        (("--rollout_batch", 0), "--rollout_batch"),
        (("--missing_end_penalty", -1), "--missing_end_penalty"),
    ],
)
def test_what_cannot_work_is_refused(flags: tuple[object, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_ppo(settings(*flags))


def test_something_must_pay() -> None:
    given = settings()
    with pytest.raises(InputError, match="nothing pays"):
        check_ppo(replace(given, reward=replace(given.reward, reward_function="")))


@pytest.mark.parametrize(
    ("flags", "data_ranks", "fits"),
    [
        (("--rollout_batch", 12, "--ppo_minibatches", 3), 4, True),
        (("--rollout_batch", 12, "--ppo_minibatches", 2), 4, False),
        (("--ptx_dataset", "c", "--ptx_batch_size", 3), 2, False),
        (("--ptx_batch_size", 3), 2, True),
    ],
)
def test_sizes_must_divide_among_the_ranks(flags: tuple[Any, ...], data_ranks: int, fits: bool) -> None:
    if fits:
        check_ranks(settings(*flags), data_ranks)
    else:
        with pytest.raises(InputError, match="cannot be divided"):
            check_ranks(settings(*flags), data_ranks)
