"""The pairwise losses of a reward model: pure functions of its scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from colossal_llama2.align.chunks import at_least_fp32

PairwiseLoss = Literal["log_sig", "log_exp"]


class RewardSums(NamedTuple):
    """Sums over pairs, each pair times its weight: ranks and micro-batches add them up, then divide by `weight`.

    Every field is a scalar tensor, so that `torch.stack(sums)` goes into one all-reduce; only `loss` has a gradient.

    Attributes:
        loss: of the pairs, in nats.
        correct: pairs whose chosen answer scores higher; a tie counts as wrong.
        margin: score of the chosen answer minus that of the rejected.
        chosen: scores of the chosen answers.
        rejected: scores of the rejected answers.
        weight: the weights themselves: pairs, if every pair weighs one; prompts, with the weights of `ranked_pairs`.
    """

    loss: torch.Tensor
    correct: torch.Tensor
    margin: torch.Tensor
    chosen: torch.Tensor
    rejected: torch.Tensor
    weight: torch.Tensor


class RankedPairs(NamedTuple):
    """All pairs to learn from among ranked responses.

    Attributes:
        chosen: [P] int64, number of the better response.
        rejected: [P] int64, number of the worse one.
        weights: [P] fp32, 1 / (pairs of the prompt).
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    weights: torch.Tensor


def log_sig_losses(chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Take -log sigmoid(r_c - r_r - m) of every pair (Ouyang et al., InstructGPT, arXiv 2203.02155, eq. 1).

    Args:
        chosen: [P], r_c, scores of the better responses.
        rejected: [P], r_r.
        margins: m, by how much the better one is to win, 0 for none (Touvron et al., Llama 2, arXiv 2307.09288, eq. 2).

    Returns:
        [P] in nats, fp32; never infinite for finite scores.
    """
    return -F.logsigmoid(at_least_fp32(chosen) - at_least_fp32(rejected) - margins)


def log_exp_losses(chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Take log(1 + exp(r_r - r_c + m)) of every pair (ColossalChat cites Bai et al., arXiv 2204.05862).

    The same number as `log_sig_losses`: -log(1 / (1 + exp(-x))) = log(1 + exp(-x)). Both names exist because
    ColossalChat offers both. Arguments and result are those of `log_sig_losses`.
    """
    deficit = at_least_fp32(rejected) - at_least_fp32(chosen) + margins
    return torch.logaddexp(deficit, torch.zeros_like(deficit))  # exp alone overflows from 89 on


PAIRWISE_LOSSES: dict[PairwiseLoss, Callable[..., torch.Tensor]] = {
    "log_sig": log_sig_losses,
    "log_exp": log_exp_losses,
}


def ranked_pairs(ranks: torch.Tensor, prompts: torch.Tensor) -> RankedPairs:
    """List every pair of responses to one prompt of which one is ranked better; equal ranks make no pair.

    K responses of different ranks make K (K - 1) / 2 pairs, and each weighs one over their number, so that a prompt
    weighs one however many responses it has (InstructGPT, eq. 1).

    Args:
        ranks: [R], of each response; the lower the better, 1 is the best.
        prompts: [R] int64, the prompt of each response.
    """
    better = (prompts[:, None] == prompts[None, :]) & (ranks[:, None] < ranks[None, :])
    chosen, rejected = better.nonzero(as_tuple=True)
    worse = better.sum(dim=1)
    pairs = ((prompts[:, None] == prompts[None, :]) * worse).sum(dim=1)  # of each response's prompt
    return RankedPairs(chosen, rejected, 1.0 / pairs[chosen].float())


def sum_pairs(
    losses: torch.Tensor, chosen: torch.Tensor, rejected: torch.Tensor, weights: torch.Tensor | None = None
) -> RewardSums:
    """Add up the losses of pairs and what is logged of them; the direct methods' implicit rewards are summed here too.

    Args:
        losses: [P].
        chosen: [P], scores of the better responses.
        rejected: [P], scores of the worse ones.
        weights: [P], ones if None.
    """
    weights = torch.ones_like(losses) if weights is None else weights.to(losses)
    chosen, rejected = at_least_fp32(chosen.detach()), at_least_fp32(rejected.detach())
    margins = chosen - rejected
    of_pairs = (losses, (margins > 0).to(losses), margins, chosen, rejected, torch.ones_like(losses))
    return RewardSums(*((values * weights).sum() for values in of_pairs))


def reward_sums(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    kind: PairwiseLoss = "log_sig",
    weights: torch.Tensor | None = None,
    margins: torch.Tensor | float = 0.0,
) -> RewardSums:
    """Take the pairwise loss of a reward model, with its accuracy, margins and mean scores, as sums.

    Args:
        chosen: [P], scores of the better responses at their last real token.
        rejected: [P], scores of the worse ones.
        kind: `log_sig` or `log_exp`: the same mathematics.
        weights: [P], ones if None; those of `ranked_pairs` for K responses a prompt.
        margins: see `log_sig_losses`; the logged margin is the scores' alone.
    """
    return sum_pairs(PAIRWISE_LOSSES[kind](chosen, rejected, margins), chosen, rejected, weights)
