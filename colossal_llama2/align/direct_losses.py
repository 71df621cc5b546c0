"""The losses that learn from preferences without a reward model or a critic: DPO, IPO, SimPO, ORPO and KTO.

A pair is a better (chosen, w) and a worse (rejected, l) answer to one prompt; log-probabilities are sums over the
answer's tokens, |y| their number. Every loss comes per pair or answer: the caller sums them, and divides by the
global count.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from colossal_llama2.align.chunks import at_least_fp32
from colossal_llama2.align.log_probs import SequenceLogProbs

DpoKind = Literal["sigmoid", "ipo"]


class Pairs(NamedTuple):
    """What one model says of P pairs of answers.

    Attributes:
        chosen: [P], log pi(y_w | x), summed over the tokens of the answer, in nats.
        rejected: [P], log pi(y_l | x).
        chosen_lengths: [P], |y_w| in tokens.
        rejected_lengths: [P], |y_l|.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_lengths: torch.Tensor
    rejected_lengths: torch.Tensor

    @staticmethod
    def of(sequences: SequenceLogProbs, chosen: torch.Tensor, rejected: torch.Tensor) -> Pairs:
        """Pick pairs out of the sequences of packed rows: `chosen` and `rejected` [P] are their numbers."""
        sums, lengths = sequences
        return Pairs(sums[chosen], sums[rejected], lengths[chosen], lengths[rejected])

    def per_token(self) -> Pairs:
        """Return the means over tokens in place of the sums; the mean of an answer without tokens is 0."""
        return self._replace(
            chosen=at_least_fp32(self.chosen) / self.chosen_lengths.clamp(min=1),
            rejected=at_least_fp32(self.rejected) / self.rejected_lengths.clamp(min=1),
        )


class PairLosses(NamedTuple):
    """The losses of P pairs, and the implicit rewards; `reward_losses.sum_pairs` makes accuracy and margins of them.

    Attributes:
        losses: [P], with gradient.
        chosen_rewards: [P], without.
        rejected_rewards: [P], without.
    """

    losses: torch.Tensor
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor


class OrpoLosses(NamedTuple):
    """ORPO's losses and the two they are made of, all [P]; the last four without gradient.

    Attributes:
        losses: nll + lam * odds_ratio.
        chosen_rewards: lam * mean log-probability of the chosen answer.
        rejected_rewards: the same of the rejected one.
        nll: negative mean log-probability of the chosen answer's tokens.
        odds_ratio: -log sigmoid of the log odds ratio.
    """

    losses: torch.Tensor
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor
    nll: torch.Tensor
    odds_ratio: torch.Tensor


def dpo(
    policy: Pairs, reference: Pairs, beta: float, kind: DpoKind = "sigmoid", label_smoothing: float = 0.0
) -> PairLosses:
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290, eq. 7), or its relative IPO.

        h       = log(pi(y_w) / ref(y_w)) - log(pi(y_l) / ref(y_l))
        sigmoid = -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h)
        ipo     = (h - 1 / (2 beta))^2      (Azar et al., arXiv 2310.12036, eq. 17, whose tau is beta)
        reward  = beta log(pi(y) / ref(y))

    Args:
        policy: of the model that learns.
        reference: of the frozen one; no gradient reaches it.
        beta: strength of the pull to the reference, above 0.
        kind: `sigmoid` or `ipo`. IPO as in its paper takes sums; give `per_token()` of both for the variant on means.
        label_smoothing: eps, share of pairs believed to be labelled the wrong way round (conservative DPO), under 0.5;
            for `sigmoid` only.
    """
    assert beta > 0, "beta is above 0"
    assert 0 <= label_smoothing < 0.5, "with half of the labels wrong there is nothing to learn"
    assert kind == "sigmoid" or not label_smoothing, "label smoothing is defined for the sigmoid loss"
    chosen = at_least_fp32(policy.chosen) - at_least_fp32(reference.chosen.detach())
    rejected = at_least_fp32(policy.rejected) - at_least_fp32(reference.rejected.detach())
    h = chosen - rejected
    if kind == "ipo":
        losses = (h - 1.0 / (2.0 * beta)).square()
    else:
        losses = -F.logsigmoid(beta * h)
        if label_smoothing:
            losses = (1.0 - label_smoothing) * losses - label_smoothing * F.logsigmoid(-beta * h)
    return PairLosses(losses, beta * chosen.detach(), beta * rejected.detach())


def simpo(policy: Pairs, beta: float, gamma: float) -> PairLosses:
    """Simple preference optimisation (Meng et al., arXiv 2405.14734, eq. 6): no reference, rewards per token.

        reward = beta / |y| log pi(y)
        loss   = -log sigmoid(reward_w - reward_l - gamma)

    Args:
        policy: of the model that learns.
        beta: scale of the rewards (the paper: 2 to 2.5).
        gamma: margin to win by, in the units of the reward (the paper: 0.3 to 1.6).
    """
    means = policy.per_token()
    chosen, rejected = beta * means.chosen, beta * means.rejected
    return PairLosses(-F.logsigmoid(chosen - rejected - gamma), chosen.detach(), rejected.detach())


def orpo(policy: Pairs, lam: float) -> OrpoLosses:
    """Odds ratio preference optimisation (Hong et al., arXiv 2403.07691, eq. 6 and 7): no reference, SFT included.

        log P(y)  = log pi(y) / |y|
        odds(y)   = P / (1 - P)
        loss      = -log P(y_w) + lam * -log sigmoid(log(odds(y_w) / odds(y_l)))

    Args:
        policy: of the model that learns.
        lam: weight of the odds ratio (the paper: 0.1 for 7B).
    """
    chosen, rejected = (at_least_fp32(each) for each in policy.per_token()[:2])
    odds_ratio = -F.logsigmoid(_log_odds(chosen) - _log_odds(rejected))
    nll = -chosen
    return OrpoLosses(
        nll + lam * odds_ratio, lam * chosen.detach(), lam * rejected.detach(), nll.detach(), odds_ratio.detach()
    )


def _log_odds(log_p: torch.Tensor) -> torch.Tensor:
    """Take log(p / (1 - p)) from log p, which rounding may have brought to 0: there p is the largest below one."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    # log(1 - e^x): near 0 the difference has no digits left but in expm1, far below 0 only log1p keeps them
    near = log_p > -math.log(2.0)
    of_near = torch.log(-torch.expm1(log_p.where(near, -1.0)))
    of_far = torch.log1p(-torch.exp(log_p.where(~near, -1.0)))
    return log_p - of_near.where(near, of_far)


class KtoLosses(NamedTuple):
    """KTO's losses of N answers.

    Attributes:
        losses: [N], with gradient.
        rewards: [N], beta log(pi / ref), without.
        correct: [N] bool: a desirable answer is above the reference point, an undesirable one below.
    """

    losses: torch.Tensor
    rewards: torch.Tensor
    correct: torch.Tensor


def kto_reference_point(log_ratio_sum: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Estimate z0 = max(0, mean of log(pi(y') / ref(y'))), y' an answer to *another* prompt (2402.01306, section 4.1).

    Args:
        log_ratio_sum: scalar, sum over mismatched prompts and answers of all ranks of log pi(y' | x) - log ref(y' | x).
        count: scalar, how many.

    Returns:
        Scalar without gradient, as in the paper; 0 if there is no mismatched pair.
    """
    return (log_ratio_sum.detach() / count.clamp(min=1)).clamp(min=0.0)


def kto(
    policy: torch.Tensor,
    reference: torch.Tensor,
    desirable: torch.Tensor,
    reference_point: torch.Tensor,
    beta: float,
    weights: tuple[float, float] = (1.0, 1.0),
) -> KtoLosses:
    """Kahneman-Tversky optimisation (Ethayarajh et al., arXiv 2402.01306, section 4): single answers, good or bad.

        r    = log(pi(y) / ref(y))
        loss = lam_D (1 - sigmoid(beta (r - z0)))  if y is desirable
               lam_U (1 - sigmoid(beta (z0 - r)))  if it is not

    Args:
        policy: [N], log pi(y | x), summed over the answer.
        reference: [N], log ref(y | x); no gradient reaches it.
        desirable: [N] bool.
        reference_point: z0, scalar, see `kto_reference_point`; the same on every rank.
        beta: aversion to risk, and the pull to the reference (the paper: 0.1).
        weights: lam_D and lam_U, to even out how many answers there are of each kind.
    """
    log_ratio = at_least_fp32(policy) - at_least_fp32(reference.detach())
    above = log_ratio - reference_point.detach()
    good = desirable.to(above)
    side, weight = 2.0 * good - 1.0, weights[0] * good + weights[1] * (1.0 - good)
    # 1 - sigmoid(x) = sigmoid(-x), which keeps its digits
    losses = weight * torch.sigmoid(-beta * side * above)
    return KtoLosses(losses, beta * log_ratio.detach(), (side * above > 0).detach())
