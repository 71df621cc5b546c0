"""Log-probabilities, lengths and entropies of the tokens of packed rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from colossal_llama2.align.chunks import CHUNK, at_least_fp32, by_chunks
from colossal_llama2.train.losses import IGNORED

CrossEntropies = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps logits [N, V] and targets [N] to cross-entropies [N] in nats, fp32; under tensor parallelism V is a part."""


class TokenLogProbs(NamedTuple):
    """What a model says of the learned tokens of packed rows, row after row.

    Attributes:
        log_probs: [N] in nats, fp32 (float64 from float64 logits), with gradient.
        positions: [N] int64, where each token stands in the flattened B * S, ascending; it was predicted from the
            position before.
        tokens: [N] int64.
    """

    log_probs: torch.Tensor
    positions: torch.Tensor
    tokens: torch.Tensor


class SequenceLogProbs(NamedTuple):
    """What a model says of whole sequences.

    Attributes:
        sums: [P] in nats, 0 for a sequence of which nothing is learned.
        lengths: [P] int64, learned tokens of each.
    """

    sums: torch.Tensor
    lengths: torch.Tensor


def learned_positions(labels: torch.Tensor) -> torch.Tensor:
    """Find the learned tokens of packed rows.

    Args:
        labels: [B, S], -100 where nothing is learned. The first position of a row is never predicted, whatever its
            label; that of a later document must be -100, as `collate` makes it.

    Returns:
        [N] int64, positions in the flattened B * S, ascending.
    """
    learned = labels != IGNORED
    return F.pad(learned[:, 1:], (1, 0)).reshape(-1).nonzero()[:, 0]


def token_log_probs(
    logits: torch.Tensor,
    labels: torch.Tensor,
    cross_entropies: CrossEntropies | None = None,
    temperature: float = 1.0,
) -> TokenLogProbs:
    """Take log p(token | what stands before it) of every learned token.

    Args:
        logits: [B, S, V], any floating dtype; V is this rank's part under tensor parallelism.
        labels: [B, S], -100 where nothing is learned.
        cross_entropies: the session's; torch's own on a whole vocabulary if None.
        temperature: the logits are divided by it first: log-probabilities are those of the distribution that was
            sampled from. It must be the sampler's.

    Returns:
        One number a learned token; empty, with a gradient of zero, if there is none.
    """
    assert temperature > 0, "a temperature of zero has no distribution"
    positions = learned_positions(labels)
    tokens = labels.reshape(-1)[positions]
    # select first: an fp32 copy of the logits is the largest tensor of the step
    chosen = logits.reshape(-1, logits.shape[-1])[positions - 1]
    if temperature != 1.0:
        chosen = at_least_fp32(chosen) / temperature  # in fp32: a half type would round every logit again
    entropies = _whole_cross_entropies if cross_entropies is None else cross_entropies
    return TokenLogProbs(-entropies(chosen, tokens), positions, tokens)


def _whole_cross_entropies(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(at_least_fp32(logits), targets, reduction="none")


def sequence_numbers(positions: torch.Tensor, cu_seq_lens: torch.Tensor) -> torch.Tensor:
    """Find which piece of the packed rows each position lies in.

    Args:
        positions: [N], in the flattened B * S.
        cu_seq_lens: [P + 1] bounds of the pieces; padding at a row's end is a piece too, with no learned token.

    Returns:
        [N] int64, from 0 to P - 1.
    """
    return torch.bucketize(positions, cu_seq_lens.to(positions), right=True) - 1


def sequence_sums(values: torch.Tensor, numbers: torch.Tensor, num_sequences: int) -> SequenceLogProbs:
    """Add up the values of each sequence, log-probabilities above all, and count its tokens.

    Args:
        values: [N], one number a learned token.
        numbers: [N] int64, the sequence of each, see `sequence_numbers`.
        num_sequences: P.

    Returns:
        Sums [P] with gradient, and lengths [P].
    """
    values = at_least_fp32(values)
    sums = values.new_zeros(num_sequences).index_add(0, numbers, values)
    return SequenceLogProbs(sums, torch.bincount(numbers, minlength=num_sequences))


def answer_weights(numbers: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Weigh tokens so that every answer weighs the same, whatever its length: 1 / (tokens of its answer).

    Args:
        numbers: [N] int64, the sequence of each token.
        lengths: [P], tokens of each sequence.

    Returns:
        [N] fp32; they add up to the number of sequences that have tokens. (For every *token* to weigh the same, the
        weights are ones.)
    """
    return 1.0 / lengths[numbers].float()


def token_entropies(
    logits: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0, chunk: int = CHUNK
) -> torch.Tensor:
    """Take the entropy -sum(p log p) of the distribution that each learned token was drawn from.

    On the whole vocabulary only: with logits divided over tensor-parallel ranks the number would be that of a part.
    Chunked over positions, forward and backward, so that no fp32 copy of all logits exists.

    Args:
        logits: [B, S, V], the whole vocabulary.
        labels: [B, S], -100 where nothing is learned.
        temperature: as in `token_log_probs`.
        chunk: positions at a time.

    Returns:
        [N] in nats, in the order of `token_log_probs`, with gradient (for an entropy bonus).
    """
    assert temperature > 0, "a temperature of zero has no distribution"

    def entropies(part: torch.Tensor, which: slice) -> torch.Tensor:
        log_p = torch.log_softmax(part / temperature, dim=-1)
        p = log_p.exp()
        return -(p * log_p.where(p > 0, 0.0)).sum(dim=-1)  # a logit of -inf has probability 0 and adds nothing

    return by_chunks(entropies, logits.reshape(-1, logits.shape[-1]), learned_positions(labels) - 1, chunk)
