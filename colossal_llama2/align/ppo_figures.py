"""The flight deck's figures of a rollout, from its experience: pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from colossal_llama2.align.experience import Experience
from colossal_llama2.align.judging import text_of

SHOWN_CHARACTERS = 2_000
"""Of a prompt or an answer; what is left out is said."""


def figures_of(experience: Experience, kl_coef: float) -> dict[str, float]:
    """Say what came of a rollout.

    Args:
        experience: of all ranks.
        kl_coef: the KL's coefficient in its rewards.

    Returns:
        `reward`: mean of what answers are rewarded with, `reward_std`; `reward_model` and `reward_function`: means as
        they scored; `reward_shaped`: less the KL's cost. `kl`: mean over answers of the KL of a whole answer, in nats;
        `kl_per_token`; `kl_coef`. `entropy`: mean of -log p of the tokens drawn, an unbiased estimate, in nats a token.
        `length` and `length_max`, in tokens; `ended`: share of answers with an end token. `value` and `return`: means;
        `explained_variance`: of the returns, by the critic, before it learned from them. `sampling_gap`: mean distance
        of the sampler's log-probabilities from those of the training pass, in nats a token.
    """
    judged = experience.judged
    lengths = torch.tensor([len(one.answer.ids) for one in judged], dtype=torch.float64)
    kl, log_probs = torch.cat(experience.kl), _all([one.log_probs for one in judged])
    returns, values = torch.cat(experience.returns), _all([one.values for one in judged])
    gap = (log_probs - _all([one.answer.log_probs for one in judged])).abs()
    of_answers = torch.stack([row.sum() for row in experience.rewards])
    return {
        "reward": _mean(experience.scores),
        "reward_std": float(experience.scores.double().std(unbiased=False)),
        "reward_model": _mean(torch.tensor([one.model_score for one in judged])),
        "reward_function": _mean(torch.tensor([one.function_score for one in judged])),
        "reward_shaped": _mean(of_answers),
        "kl": float(kl.double().sum()) / len(judged),
        "kl_per_token": _mean(kl),
        "kl_coef": kl_coef,
        "entropy": -_mean(log_probs),
        "length": float(lengths.mean()),
        "length_max": float(lengths.max()),
        "ended": sum(one.answer.ended for one in judged) / len(judged),
        "value": _mean(values),
        "return": _mean(returns),
        "explained_variance": explained_variance(values, returns),
        "sampling_gap": _mean(gap),
    }


def explained_variance(values: torch.Tensor, returns: torch.Tensor) -> float:
    """Return 1 - Var(R - V) / Var(R): 1 for a critic that knows the returns, 0 for a constant, below for a worse one.

    Returns that do not vary leave nothing to explain: 0.
    """
    spread = returns.double().var(unbiased=False)
    if spread == 0:
        return 0.0
    return float(1.0 - (returns.double() - values.double()).var(unbiased=False) / spread)


def describe_samples(experience: Experience, tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """Show answers as text: the best paid, the worst paid, and then those between.

    Args:
        experience: of a rollout.
        tokenizer: ids to text.
        count: how many.
    """
    order = torch.argsort(experience.scores, stable=True).tolist()
    chosen: Sequence[int] = [order[-1], order[0], *order[-2:0:-1]][: min(count, len(order))]
    return [
        {
            "prompt": _cut(str(tokenizer.decode(experience.judged[number].prompt.tolist()))),
            "answer": _cut(text_of(tokenizer, experience.judged[number].answer)),
            "reward": float(experience.scores[number]),
            "tokens": len(experience.judged[number].answer.ids),
            "ended": experience.judged[number].answer.ended,
        }
        for number in chosen
    ]


def _cut(text: str) -> str:
    left = len(text) - SHOWN_CHARACTERS
    return text if left <= 0 else f"{text[:SHOWN_CHARACTERS]} ... ({left} characters more)"


def _all(arrays: Sequence[Any]) -> torch.Tensor:
    return torch.cat([torch.from_numpy(array) for array in arrays])


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean())
