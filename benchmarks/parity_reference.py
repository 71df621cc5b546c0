"""Training in plain PyTorch, for everything to be compared with: nothing of the engine, the loop or the batches.

A document is run on its own, through transformers' own attention, so that what stands before it in its row cannot
matter. Taken from the package: how a corpus is read, the order of its rows, and the schedule, which have tests of their
own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Curve = list[tuple[float, float]]
SEED, LR, WARMUP, EPS = 3, 1e-2, 2, 1e-4
"""A large epsilon: 1e-8 blows rounding noise in near-zero gradients up to full steps."""


@dataclass(frozen=True)
class PlainSteps:
    """What is trained on.

    Attributes:
        steps: optimizer steps.
        rows: rows in each.
        left_out: steps, from 1, that move nothing but the schedule, as those do whose gradients overflow fp16.
    """

    steps: int = 5
    rows: int = 4
    left_out: frozenset[int] = frozenset()


def plain_curve(model_dir: Path, corpus_dir: Path, plan: PlainSteps, embeddings_only: bool = False) -> Curve:
    """Train the model of a folder: matrices decay, norms, biases and the input embedding do not.

    Args:
        model_dir: where to start.
        corpus_dir: a prepared corpus.
        plan: how long.
        embeddings_only: freeze everything but the input embedding and the head.

    Returns:
        See `train_plainly`.
    """
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    trained = {n: p for n, p in model.named_parameters() if not embeddings_only or "embed" in n or "lm_head" in n}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    decayed = [p for n, p in trained.items() if p.ndim > 1 and "embed" not in n]
    others = [p for n, p in trained.items() if p.ndim == 1 or "embed" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return train_plainly(model, groups, corpus_dir, plan)


def train_plainly(
    model: Any,
    groups: list[dict[str, Any]],
    corpus_dir: Path,
    plan: PlainSteps,
    loss_of: Callable[[Any, list[Any]], torch.Tensor] | None = None,
) -> Curve:
    """Train with torch alone.

    Args:
        model: in fp32, under transformers' own attention.
        groups: its trained parameters, as torch's optimizers take them.
        corpus_dir: a prepared corpus, or a set of compared answers.
        plan: how long.
        loss_of: turns the model and the rows of a step into its loss; the mean over their learned tokens by default.

    Returns:
        Loss in nats and gradient norm before clipping, a step.
    """
    from colossal_llama2.dataset.corpus import PreparedCorpus
    from colossal_llama2.dataset.order import epoch_order
    from colossal_llama2.train.schedule import cosine_multiplier

    model.train()
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=EPS)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    corpus = PreparedCorpus.open([corpus_dir], types=("pretrain", "sft", "preference"))
    order = epoch_order(corpus.bucket_sizes, SEED, 0)
    curve: Curve = []
    for step in range(plan.steps):
        rows = order[step * plan.rows : (step + 1) * plan.rows]
        loss = (loss_of or token_mean)(model, [corpus.row(int(row)) for row in rows])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * cosine_multiplier(step, plan.steps, WARMUP)
        if step + 1 not in plan.left_out:
            optimizer.step()
        optimizer.zero_grad()
        curve.append((loss.item(), norm.item()))
    return curve


def token_mean(model: Any, rows: list[Any]) -> torch.Tensor:
    """Return the mean loss of the learned tokens of some rows."""
    return torch.stack([loss for row in rows for _, loss in row_losses(model, row)]).mean()


def row_losses(model: Any, row: Any) -> list[tuple[int, torch.Tensor]]:
    """Run each document of a row on its own; return every learned token with its loss, in nats."""
    losses, begin = [], 0
    for length in row.seq_lens.tolist():
        ids = torch.tensor(row.input_ids[begin : begin + length].astype(int))[None]
        labels = [int(label) for label in row.labels[begin : begin + length]]
        scores = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        losses += [(labels[t], -scores[t - 1, labels[t]]) for t in range(1, length) if labels[t] != -100]
        begin += length
    return losses
