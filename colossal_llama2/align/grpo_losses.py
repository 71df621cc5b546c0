"""GRPO and its relative DAPO: PPO's policy loss with answers to one prompt compared with each other, and no critic."""

from __future__ import annotations

from typing import NamedTuple

import torch

from colossal_llama2.align.chunks import at_least_fp32
from colossal_llama2.align.kl_estimates import kl_estimates
from colossal_llama2.align.ppo_losses import DEFAULT_CLIP, PolicyClip, PolicySums, policy_loss


class TokenTriple(NamedTuple):
    """What three models say of N tokens of answers.

    Attributes:
        policy: [N], of the one that learns.
        old: [N], of the one that sampled.
        reference: [N], of the frozen one; None if there is no KL to it.
    """

    policy: torch.Tensor
    old: torch.Tensor
    reference: torch.Tensor | None


class GrpoSums(NamedTuple):
    """Sums over tokens, each times its weight: ranks add them up, then divide by `policy.weight`.

    Attributes:
        loss: policy.loss + beta * kl, with gradient.
        policy: see `PolicySums`.
        kl: k3 between policy and reference, 0 without a reference.
    """

    loss: torch.Tensor
    policy: PolicySums
    kl: torch.Tensor


def group_advantages(
    scores: torch.Tensor, groups: torch.Tensor, divide_by_std: bool = True, eps: float = 1e-4
) -> torch.Tensor:
    """Compare every answer's score with the others' of its prompt (Shao et al., arXiv 2402.03300, section 4.1.2).

    A = (score - mean of the group) / (standard deviation of the group + eps)

    Args:
        scores: [B].
        groups: [B] int64, from 0: the prompt of each answer; all answers to a prompt are here.
        divide_by_std: False leaves the difference as it is (Liu et al., arXiv 2503.20783, against its bias).
        eps: where all answers score the same, the advantage is 0.

    Returns:
        [B] fp32; the deviation is that of a sample (n - 1). A group of one has advantage 0: nothing to compare with.
    """
    scores = at_least_fp32(scores)
    sizes = torch.bincount(groups).to(scores)
    centred = scores - (torch.zeros_like(sizes).index_add(0, groups, scores) / sizes.clamp(min=1))[groups]
    if not divide_by_std:
        return centred
    squares = torch.zeros_like(sizes).index_add(0, groups, centred.square())
    return centred / ((squares / (sizes - 1).clamp(min=1)).sqrt()[groups] + eps)


def grpo(
    log_probs: TokenTriple,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    beta: float = 0.04,
    clip: PolicyClip = DEFAULT_CLIP,
) -> GrpoSums:
    """Group relative policy optimisation (Shao et al., arXiv 2402.03300, eq. 3 and 4).

    loss = PPO's clipped loss with the answer's advantage at each of its tokens + beta * k3(policy, reference)

    Args:
        log_probs: of the answers' tokens.
        advantages: [N], each token that of its answer, see `group_advantages`.
        weights: [N]: `answer_weights` for the paper's mean over answers of means over tokens; ones for a mean over all
            tokens (DAPO, arXiv 2503.14476, section 3.3).
        beta: weight of the KL (the paper: 0.04).
        clip: `PolicyClip(0.2, 0.28)` is DAPO's clip-higher.
    """
    policy = policy_loss(log_probs.policy, log_probs.old, advantages, weights, clip)
    if log_probs.reference is None:
        assert not beta, "a KL to a reference needs its log-probabilities"
        return GrpoSums(policy.loss, policy, policy.loss.new_zeros(()))
    taken = weights > 0
    own = torch.where(taken, at_least_fp32(log_probs.policy), 0.0)
    of_reference = torch.where(taken, at_least_fp32(log_probs.reference.detach()), 0.0)
    kl = (kl_estimates(own, of_reference, "k3") * weights.to(policy.loss)).sum()
    return GrpoSums(policy.loss + beta * kl, policy, kl.detach())
