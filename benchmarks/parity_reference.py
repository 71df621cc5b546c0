"""What the plugins are compared with: a tiny model and corpus, and a training loop in plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.tiny_inputs import make_tiny_inputs

Curve = list[tuple[float, float]]
SEED, LR, WARMUP, EPS, LENGTH = 3, 1e-2, 2, 1e-4, 48


def make_inputs(folder: Path) -> tuple[Path, Path]:
    """Make a random Llama that divides in every way but one, its vocabulary (401 rows), and a corpus for it."""
    sizes: dict[str, Any] = {"vocab_size": 401, "num_hidden_layers": 4, "num_attention_heads": 4}
    return make_tiny_inputs(folder, initializer_range=0.1, **sizes)


def plain_curve(
    model_dir: Path, corpus_dir: Path, embeddings_only: bool, sizes: tuple[int, int], left_out: frozenset[int]
) -> Curve:
    """Train document by document with transformers' own attention; nothing of the engine, the loop or the batches.

    Args:
        model_dir: where to start.
        corpus_dir: a prepared corpus; the order of its rows is taken from the package.
        embeddings_only: freeze everything but the input embedding and the head.
        sizes: steps, and rows in each.
        left_out: steps, from 1, that move nothing but the schedule, as those do whose gradients overflow fp16.

    Returns:
        Loss in nats and gradient norm before clipping, a step.
    """
    from transformers import AutoModelForCausalLM

    from colossal_llama2.dataset.corpus import PreparedCorpus
    from colossal_llama2.dataset.order import epoch_order
    from colossal_llama2.train.schedule import cosine_multiplier

    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    model.train()
    trained = {n: p for n, p in model.named_parameters() if not embeddings_only or "embed" in n or "lm_head" in n}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    decayed = [p for n, p in trained.items() if p.ndim > 1 and "embed" not in n]
    others = [p for n, p in trained.items() if p.ndim == 1 or "embed" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=EPS)
    corpus = PreparedCorpus.open([corpus_dir])
    order = epoch_order(corpus.bucket_sizes, SEED, 0)
    steps, rows = sizes
    curve: Curve = []
    for step in range(steps):
        losses = [
            loss for row in order[step * rows : (step + 1) * rows] for loss in _losses(model, corpus.row(int(row)))
        ]
        loss = torch.stack(losses).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * cosine_multiplier(step, steps, WARMUP)
        if step + 1 not in left_out:
            optimizer.step()
        optimizer.zero_grad()
        curve.append((loss.item(), norm.item()))
    return curve


def _losses(model: Any, row: Any) -> list[torch.Tensor]:
    """Each document on its own, one token at a time: what comes before it in the row cannot matter."""
    losses, begin = [], 0
    for length in row.seq_lens.tolist():
        ids = torch.tensor(row.input_ids[begin : begin + length].astype(int))[None]
        labels = row.labels[begin : begin + length]
        logits = model(ids, use_cache=False).logits[0].log_softmax(-1)
        losses += [-logits[t - 1, int(labels[t])] for t in range(1, length) if labels[t] != -100]
        begin += length
    return losses
