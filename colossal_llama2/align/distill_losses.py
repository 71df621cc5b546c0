"""Distillation over one vocabulary: KL between a teacher's and a student's distributions, a few positions at a time."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from colossal_llama2.align.chunks import CHUNK, at_least_fp32, by_chunks
from colossal_llama2.align.log_probs import learned_positions

KlDirection = Literal["forward", "reverse"]


class DistillSums(NamedTuple):
    """Sums over learned tokens: ranks add them up, then divide by `tokens`. Scalars.

    Attributes:
        loss: kl_share * T^2 * kl + (1 - kl_share) * cross-entropy, with gradient to the student.
        kl: at temperature T, without the factor T^2, in nats.
        cross_entropy: of the student with the labels, at temperature 1, in nats.
        tokens: learned tokens.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    cross_entropy: torch.Tensor
    tokens: torch.Tensor


class Distillation(NamedTuple):
    """What is learned from the teacher, and how.

    Attributes:
        temperature: T: both logits are divided by it, and the KL multiplied by T^2, so that its gradient keeps its size
            (Hinton et al., arXiv 1503.02531, section 2).
        direction: `forward`, KL(teacher || student): the student covers all that the teacher says; `reverse`,
            KL(student || teacher): it keeps to what the teacher finds likely (Gu et al., MiniLLM, arXiv 2306.08543).
        kl_share: 1 for the teacher alone; the rest is cross-entropy with the labels.
        chunk: positions at a time.
    """

    temperature: float = 1.0
    direction: KlDirection = "forward"
    kl_share: float = 1.0
    chunk: int = CHUNK


FORWARD_KL = Distillation()


def distill_sums(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, labels: torch.Tensor, how: Distillation = FORWARD_KL
) -> DistillSums:
    """Learn a teacher's distribution at every learned token of packed rows.

    Beyond the logits given and the student's gradient, no tensor larger than chunk * V exists, forward or backward.
    On the whole vocabulary only: logits divided over tensor-parallel ranks are to be gathered first.

    Args:
        student_logits: [B, S, V], any floating dtype; computed in fp32.
        teacher_logits: [B, S, V], of the same vocabulary; no gradient reaches it.
        labels: [B, S], -100 where nothing is learned; a token's distribution is that of the position before it.
        how: see `Distillation`.
    """
    assert student_logits.shape == teacher_logits.shape, "student and teacher have the same vocabulary and rows"
    assert how.temperature > 0, "a temperature of zero has no distribution"
    assert 0 <= how.kl_share <= 1, "a share is from 0 to 1"
    student, teacher = (each.reshape(-1, each.shape[-1]) for each in (student_logits, teacher_logits.detach()))
    positions = learned_positions(labels)
    targets = labels.reshape(-1)[positions]
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    kl, cross_entropy = torch.zeros(2, len(positions), dtype=dtype, device=student.device)

    def losses(part: torch.Tensor, which: slice) -> torch.Tensor:
        divergences = _divergences(part, teacher[positions[which] - 1], how)
        of_labels = F.cross_entropy(part, targets[which], reduction="none")
        kl[which], cross_entropy[which] = divergences.detach(), of_labels.detach()
        return how.kl_share * how.temperature**2 * divergences + (1.0 - how.kl_share) * of_labels

    # both in one pass: each alone would bring its own gradient, as large as the logits, and a third for their sum
    loss = by_chunks(losses, student, positions - 1, how.chunk).sum()
    return DistillSums(loss, kl.sum(), cross_entropy.sum(), kl.new_tensor(len(positions)))


def token_divergences(
    student: torch.Tensor, teacher: torch.Tensor, rows: torch.Tensor, how: Distillation = FORWARD_KL
) -> torch.Tensor:
    """Take the KL divergence at each of some rows of logits, without the factor T^2.

        forward = sum_v q_v (log q_v - log p_v)      p = softmax(student / T), q = softmax(teacher / T)
        reverse = sum_v p_v (log p_v - log q_v)

    Args:
        student: [M, V] logits.
        teacher: [M, V] logits; no gradient reaches it.
        rows: [N] int64, rows wanted, none of them twice.
        how: its temperature, direction and chunk.

    Returns:
        [N] in nats, fp32, with gradient to the student. Infinite where one has probability 0 and the other has not.
    """

    return by_chunks(lambda part, which: _divergences(part, teacher[rows[which]], how), student, rows, how.chunk)


def _divergences(student: torch.Tensor, teacher: torch.Tensor, how: Distillation) -> torch.Tensor:
    log_p = torch.log_softmax(student / how.temperature, dim=-1)
    log_q = torch.log_softmax(at_least_fp32(teacher.detach()) / how.temperature, dim=-1)
    of, to = (log_q, log_p) if how.direction == "forward" else (log_p, log_q)
    # 0 log 0 is 0: a logit of -inf, a row of padding of the vocabulary, must not become "not a number"
    return (of.exp() * (of - to).where(of > -torch.inf, 0.0)).sum(dim=-1)
