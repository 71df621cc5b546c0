"""Each text is drawn by its own options and numbers, whoever is drawn beside it."""

from __future__ import annotations

import pytest
import torch

from colossal_llama2.chat.serving.sampling import Drawer, SamplingOptions, choose_tokens, draw

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.0, 0.0])


def test_draws_follow_the_distribution() -> None:
    number = 20_000
    uniforms = (torch.arange(number) + 0.5) / number
    rows = LOGITS.expand(number, -1)
    cuts = [SamplingOptions(top_p=1 - 1e-6)] * number  # sorts, and cuts nothing
    for shown in (None, cuts):
        shares = torch.bincount(draw(rows, uniforms, shown), minlength=5) / number
        assert torch.allclose(shares, LOGITS.softmax(-1), atol=1e-3)


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [(5, 1.0, {0, 1, 2, 3, 4}), (2, 1.0, {1, 3}), (5, 0.5, {1}), (5, 0.6, {1, 3}), (5, 0.0, {1}), (1, 0.9, {1})],
)
def test_cuts_keep_the_likeliest(top_k: int, top_p: float, kept: set[int]) -> None:
    uniforms = torch.linspace(0, 1 - 1e-7, 500)
    drawn = draw(LOGITS.expand(500, -1), uniforms, [SamplingOptions(top_k=top_k, top_p=top_p)] * 500)
    assert set(drawn.tolist()) == kept


def test_neighbours_make_no_difference() -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 4, 50)
    options = [
        SamplingOptions(temperature=0.7, top_p=0.9, seed=4),
        SamplingOptions(temperature=0),
        SamplingOptions(temperature=1.1, seed=5),
        SamplingOptions(temperature=1.5, top_k=7, presence_penalty=1, frequency_penalty=0.5, seed=9),
    ]
    together = [Drawer(one) for one in options]
    batched = [choose_tokens(step.clone(), together) for step in logits]
    for row, one in enumerate(options):
        alone = Drawer(one)
        assert [choose_tokens(step[row : row + 1].clone(), [alone])[0] for step in logits] == [
            tokens[row] for tokens in batched
        ]


def test_penalties_and_biases_are_taken_from_the_logits() -> None:
    drawer = Drawer(SamplingOptions(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={2: 3.0}))
    for token in (1, 1, 3):
        drawer.note(token)
    logits = torch.zeros(5)
    drawer.adjust(logits)
    assert logits.tolist() == [0.0, -1.0, 3.0, -0.75, 0.0]


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(1000, -1)
    uniforms = torch.linspace(0, 1, 1000)  # 1 itself cannot come, and rounding may come near it
    for cuts in (None, [SamplingOptions(top_p=0.999)] * 1000):
        assert set(draw(logits, uniforms, cuts).tolist()) == {1, 2}


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-38, 1e-5, 2e-5])
def test_next_to_no_temperature_takes_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[0.5, 2.0, -1.0, 1.0, -torch.inf]])
    for seed in range(20):
        assert choose_tokens(logits.clone(), [Drawer(SamplingOptions(temperature=temperature, seed=seed))]) == [1]
