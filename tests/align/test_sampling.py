from __future__ import annotations

import numpy as np
import torch

from colossal_llama2.align.sampling import draw, uniform_numbers


def test_numbers_depend_on_their_keys_alone() -> None:
    assert uniform_numbers(4, 7, 1).tolist() == uniform_numbers(9, 7, 1)[:4].tolist()
    assert uniform_numbers(4, 7, 1).tolist() != uniform_numbers(4, 7, 2).tolist()
    numbers = uniform_numbers(10_000, 3)
    assert 0 <= numbers.min() < 0.001
    assert 0.999 < numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.02


def test_the_number_picks_the_token_that_covers_it() -> None:
    logits = torch.tensor([[0.2, 0.3, 0.5]]).log().expand(6, 3)
    uniforms = torch.tensor([0.0, 0.199, 0.201, 0.499, 0.501, 1 - 2.0**-52], dtype=torch.float64)
    tokens, log_probs = draw(logits, uniforms, 1.0)
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2]
    torch.testing.assert_close(log_probs.exp(), torch.tensor([0.2, 0.2, 0.3, 0.3, 0.5, 0.5]))


def test_tokens_that_do_not_exist_are_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 1.0, float("-inf")]])
    for uniform in (0.0, 0.5, 1 - 2.0**-52):
        token, log_prob = draw(logits, torch.tensor([uniform], dtype=torch.float64), 0.7)
        assert (token.item(), log_prob.item()) == (1, 0.0)


def test_draws_follow_the_tempered_distribution() -> None:
    torch.manual_seed(0)
    logits, temperature, count = torch.randn(8), 0.7, 20_000
    tokens, log_probs = draw(logits.expand(count, 8), torch.from_numpy(uniform_numbers(count, 1)), temperature)
    expected = torch.softmax(logits / temperature, dim=-1)
    shares = torch.bincount(tokens, minlength=8) / count
    assert np.abs((shares - expected).numpy()).max() < 0.01
    torch.testing.assert_close(log_probs, expected.log()[tokens])
