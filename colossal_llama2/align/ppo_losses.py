"""The arithmetic of PPO on answers: rewards, advantages, policy and value loss, and the pretraining loss beside.

Shapes: an answer is a row of [B, T] and `mask` says which of its columns are tokens of the answer; T is the length of
the longest and nothing outside the mask is ever looked at. What works token by token also takes packed tokens [N].
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from colossal_llama2.align.chunks import at_least_fp32
from colossal_llama2.align.kl_estimates import bounded_exp, kl_estimates

PtxForm = Literal["share", "added"]


def final_scores(
    scores: torch.Tensor,
    ended: torch.Tensor | None = None,
    missing_end_penalty: float = 0.0,
    clip: float | None = None,
) -> torch.Tensor:
    """Make the score of every answer what it is rewarded with: clip it, then take the penalty off one that never ends.

    Args:
        scores: [B], of the reward model or function.
        ended: [B] bool, whether the answer has its end token; all, if None.
        missing_end_penalty: taken off the clipped score of an answer without one; not negative.
        clip: scores are kept within -clip to clip; None for no bound (DeepSpeed-Chat and ColossalChat: 5).

    Returns:
        [B] fp32.
    """
    assert missing_end_penalty >= 0, "a penalty is taken off: it is not negative"
    scores = at_least_fp32(scores)
    if clip is not None:
        scores = scores.clamp(-clip, clip)
    return scores if ended is None else torch.where(ended, scores, scores - missing_end_penalty)


def shaped_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """Give every token of an answer its reward: -kl_coef * kl, and the answer's score at its last token besides.

    r_t = -kl_coef kl_t + [t is the last token] score  (Ziegler et al., arXiv 1909.08593, eq. 2; InstructGPT, eq. 2).

    Args:
        scores: [B], see `final_scores`.
        kl: [B, T], see `kl_estimates`.
        mask: [B, T] bool, tokens of the answer.
        kl_coef: beta.

    Returns:
        [B, T] fp32, 0 outside the mask. An answer without tokens has nowhere to lay its score, and gets none.
    """
    rewards = torch.where(mask, -kl_coef * at_least_fp32(kl), 0.0)
    columns = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, columns, -1).amax(dim=1, keepdim=True)
    return rewards + torch.where(mask & (columns == last), at_least_fp32(scores)[:, None], 0.0)


class Advantages(NamedTuple):
    """Generalised advantage estimates.

    Attributes:
        advantages: [B, T], 0 outside the mask.
        returns: [B, T], advantages + values, 0 outside the mask: what the value is to learn.
    """

    advantages: torch.Tensor
    returns: torch.Tensor


@torch.no_grad()
def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> Advantages:
    """Estimate advantages over the tokens of each answer (Schulman et al., arXiv 1506.02438, eq. 16).

        delta_t = r_t + gamma V_{t+1} - V_t
        A_t     = delta_t + gamma lam A_{t+1}
        V = A = 0 after the last token of the answer

    where t+1 is the next token *of the answer*: columns outside the mask, also between two turns, do not exist.

    Args:
        rewards: [B, T], see `shaped_rewards`.
        values: [B, T], V_t: the value of the state in which token t was chosen, that is from the position before it.
        mask: [B, T] bool, tokens of the answer.
        gamma: discount.
        lam: lambda.
    """
    rewards, values = at_least_fp32(rewards), at_least_fp32(values)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_value = torch.where(here, values[:, t], next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
        advantages[:, t] = torch.where(here, advantage, 0.0)
    return Advantages(advantages, torch.where(mask, advantages + values, 0.0))


def masked_moments(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Take count, sum and sum of squares where the mask is True; ranks add them up (`dist.all_reduce`).

    Returns:
        [3] float64: squares of fp32 numbers added up in fp32 lose the variance of a large mean.
    """
    taken = values.detach().double()[mask]
    return torch.stack((taken.new_tensor(len(taken)), taken.sum(), taken.square().sum()))


def whiten(
    values: torch.Tensor, mask: torch.Tensor, moments: torch.Tensor, shift_mean: bool = True, eps: float = 1e-8
) -> torch.Tensor:
    """Give the masked values variance one, and mean zero unless the mean is to stay.

    Args:
        values: any shape.
        mask: the same shape, bool.
        moments: [3], the `masked_moments` of all ranks added up, so that every rank scales alike.
        shift_mean: False keeps the mean.
        eps: added to the variance (that of the population): equal values become 0, or their mean.

    Returns:
        The same shape, fp32, 0 outside the mask.
    """
    count, total, squares = moments.double()
    mean = total / count.clamp(min=1.0)  # without a count there is nothing to whiten either
    variance = (squares / count.clamp(min=1.0) - mean.square()).clamp(min=0.0)
    whitened = (values.double() - mean) * (variance + eps).rsqrt() + (0.0 if shift_mean else mean)
    return torch.where(mask, whitened, 0.0).to(at_least_fp32(values).dtype)


class PolicySums(NamedTuple):
    """Sums over tokens, each times its weight: ranks add them up, then divide by `weight`. Scalars.

    Attributes:
        loss: with gradient.
        clipped: tokens whose gradient the clipping took away.
        approx_kl: k3 between the policy that sampled and the one that learns.
        ratio: p / p_old.
        weight: the weights themselves.
    """

    loss: torch.Tensor
    clipped: torch.Tensor
    approx_kl: torch.Tensor
    ratio: torch.Tensor
    weight: torch.Tensor


class PolicyClip(NamedTuple):
    """How far the ratio may go before a token stops teaching.

    Attributes:
        low: epsilon below one (both ancestors: 0.2).
        high: epsilon above one, the same as `low` if None (clip-higher of DAPO, arXiv 2503.14476, section 3.1: 0.28).
        dual: c > 1, bounds the loss of a token of negative advantage at -c A (Ye et al., arXiv 1912.09729);
            None for no bound.
    """

    low: float = 0.2
    high: float | None = None
    dual: float | None = None


DEFAULT_CLIP = PolicyClip()


def policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    weights: torch.Tensor,
    clip: PolicyClip = DEFAULT_CLIP,
) -> PolicySums:
    """Take PPO's clipped loss (Schulman et al., arXiv 1707.06347, eq. 7).

        ratio = exp(log p - log p_old)
        loss  = max(-A ratio, -A clamp(ratio, 1 - low, 1 + high)),  and with dual clip  min(that, -dual A) where A < 0

    Args:
        log_probs: any shape, of the policy that learns.
        old_log_probs: the same shape, of the policy that sampled.
        advantages: the same shape, A.
        weights: the same shape: 0 where there is no token of an answer, else what the token weighs: 1 for a mean over
            tokens, `answer_weights` for one over answers. A bool mask will do.
        clip: see `PolicyClip`.
    """
    assert clip.dual is None or clip.dual > 1, "dual clip is above one"
    taken = weights > 0
    # what lies outside may be anything, also not a number: leave it out before it meets arithmetic
    log_ratio = torch.where(taken, at_least_fp32(log_probs) - at_least_fp32(old_log_probs), 0.0)
    advantages = torch.where(taken, at_least_fp32(advantages), 0.0)
    ratio = bounded_exp(log_ratio)
    high = clip.low if clip.high is None else clip.high
    losses = -advantages * ratio
    bound = -advantages * ratio.clamp(1.0 - clip.low, 1.0 + high)
    clipped = bound > losses
    losses = torch.maximum(losses, bound)
    if clip.dual is not None:
        limit = -clip.dual * advantages
        clipped = clipped | ((advantages < 0) & (losses > limit))
        losses = torch.where(advantages < 0, torch.minimum(losses, limit), losses)
    with torch.no_grad():
        # the tokens were sampled by the old policy: it is the first argument
        approx_kl = kl_estimates(torch.zeros_like(log_ratio), log_ratio, "k3")
    of_tokens = (losses, clipped.to(losses), approx_kl, ratio.detach(), torch.ones_like(ratio))
    return PolicySums(*((values * weights.to(losses)).sum() for values in of_tokens))


class ValueSums(NamedTuple):
    """Sums over tokens, each times its weight, as `PolicySums`. Scalars.

    Attributes:
        loss: with gradient.
        clipped: tokens whose clipped value was the worse one.
        error: (V - return)^2, without clipping.
        weight: the weights themselves.
    """

    loss: torch.Tensor
    clipped: torch.Tensor
    error: torch.Tensor
    weight: torch.Tensor


def value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    weights: torch.Tensor,
    clip: float | None,
) -> ValueSums:
    """Take half the squared error of the critic, the worse of the value and of the value kept near its old one.

        V_clip = clamp(V, V_old - clip, V_old + clip)
        loss   = max((V - R)^2, (V_clip - R)^2) / 2

    Args:
        values: any shape, V.
        old_values: the same shape, V_old, of the critic when the answers were made.
        returns: the same shape, R.
        weights: as in `policy_loss`.
        clip: None for none (ColossalChat documents 0.4).
    """
    taken = weights > 0
    values, old_values, returns = (
        torch.where(taken, at_least_fp32(each), 0.0) for each in (values, old_values, returns)
    )
    errors = losses = (values - returns).square()
    clipped = torch.zeros_like(taken)
    if clip is not None:
        # bounds rather than old + clamp(difference), whose rounding would count values as clipped that are not
        near = (values.clamp(old_values - clip, old_values + clip) - returns).square()
        clipped = near > errors
        losses = torch.maximum(errors, near)
    of_tokens = (losses / 2, clipped.to(losses), errors.detach(), torch.ones_like(losses))
    return ValueSums(*((each * weights.to(losses)).sum() for each in of_tokens))


def ptx_weights(form: PtxForm, ptx_coef: float) -> tuple[float, float]:
    """Return what the policy loss and the cross-entropy on pretraining rows are multiplied by.

    Args:
        form: `share`: (1 - ptx_coef) policy + ptx_coef cross-entropy (ColossalChat, its default 0.9);
            `added`: policy + ptx_coef cross-entropy (InstructGPT, eq. 2, and DeepSpeed-Chat: both 27.8).
        ptx_coef: 0 for no pretraining loss.
    """
    assert ptx_coef >= 0, "a share is not negative"
    assert form == "added" or ptx_coef <= 1, "a share is at most one"
    return (1.0 - ptx_coef if form == "share" else 1.0), ptx_coef
