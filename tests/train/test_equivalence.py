"""However ranks, micro-batches and accumulation divide a batch, training is the same: and the same as plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.order import epoch_order
from colossal_llama2.train.schedule import cosine_multiplier

STEPS, ROWS_PER_STEP, LR, SEED = 5, 4, 1e-2, 3
# A large epsilon: with 1e-8 Adam blows rounding noise in near-zero gradients up to full steps.
COMMON = ["--max_steps", STEPS, "--lr", LR, "--warmup_steps", 2, "--adam_eps", 1e-4, "--seed", SEED]
FP32 = [*COMMON, "--mixed_precision", "fp32"]


def plain_pytorch(model_dir: Path, corpus_dir: Path) -> list[tuple[float, float]]:
    """Train row by row with transformers' own attention under an explicit mask; return (loss, gradient norm) a step."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    ).train()
    corpus = PreparedCorpus.open([corpus_dir])
    order = epoch_order(corpus.bucket_sizes, SEED, 0)
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim > 1 and "embed" not in n)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-4)
    curve = []
    for step in range(STEPS):
        losses = []
        for index in order[step * ROWS_PER_STEP : (step + 1) * ROWS_PER_STEP]:
            losses += row_losses(model, corpus.row(int(index)))
        loss = torch.stack(losses).mean()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * cosine_multiplier(step, STEPS, 2)
        optimizer.step()
        optimizer.zero_grad()
        curve.append((float(loss), float(norm)))
    return curve


def row_losses(model: Any, row: Any) -> list[torch.Tensor]:
    """Each document of a row on its own, one token at a time: what comes before it in the row cannot matter."""
    losses, begin = [], 0
    for length in row.seq_lens.tolist():
        ids = torch.tensor(row.input_ids[begin : begin + length].astype(int))[None]
        labels = row.labels[begin : begin + length]
        logits = model(ids, use_cache=False).logits[0].log_softmax(-1)
        losses += [-logits[t - 1, int(labels[t])] for t in range(1, length) if labels[t] != -100]
        begin += length
    return losses


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path, corpus_dir: Path) -> list[tuple[float, float]]:
    """Give the curve of plain PyTorch."""
    return plain_pytorch(tiny_model_dir, corpus_dir)


@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (1, ["--plugin", "zero2", "--micro_batch_size", 4]),
        (2, ["--plugin", "zero2", "--accumulation_steps", 2]),
        (2, ["--plugin", "ddp", "--accumulation_steps", 2, "--use_grad_checkpoint"]),
        pytest.param(
            2, ["--plugin", "zero2", "--micro_batch_size", 2, "--use_grad_checkpoint"], marks=pytest.mark.long
        ),
        pytest.param(1, ["--plugin", "ddp", "--micro_batch_size", 2, "--batch_size", 4], marks=pytest.mark.long),
        pytest.param(2, ["--plugin", "zero2_cpu", "--accumulation_steps", 2], marks=pytest.mark.long),
        pytest.param(4, ["--plugin", "zero2"], marks=pytest.mark.long),
    ],
)
def test_the_curve_is_that_of_plain_pytorch(
    train_on: Callable[..., Any],
    reference: list[tuple[float, float]],
    tmp_path: Path,
    ranks: int,
    flags: list[object],
) -> None:
    run = train_on(ranks, tmp_path / "run", *FP32, *flags)
    assert run.code == 0, run.output
    ours = [(line["loss"], line["grad_norm"]) for line in run.metrics]
    assert len(ours) == STEPS
    for (loss, norm), (expected_loss, expected_norm) in zip(ours, reference, strict=True):
        assert loss == pytest.approx(expected_loss, abs=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-4)
    assert reference[-1][0] < reference[0][0] - 0.1, "nothing was learned, so equality would show little"


@pytest.mark.parametrize(
    ("precision", "plugin"),
    [
        ("fp16", "zero2"),
        ("bf16", "gemini"),
        pytest.param("fp16", "gemini_auto", marks=pytest.mark.long),
        pytest.param("bf16", "zero2", marks=pytest.mark.long),
        pytest.param("bf16", "ddp", marks=pytest.mark.long),
        pytest.param("fp16", "ddp", marks=pytest.mark.long),
    ],
)
def test_half_precision_stays_close(
    train_on: Callable[..., Any],
    reference: list[tuple[float, float]],
    tmp_path: Path,
    precision: str,
    plugin: str,
) -> None:
    flags = [*COMMON, "--mixed_precision", precision, "--plugin", plugin, "--accumulation_steps", 2]
    run = train_on(2, tmp_path / "run", *flags)
    assert run.code == 0, run.output
    ours = [(line["loss"], line["grad_norm"]) for line in run.metrics]
    assert len(ours) == STEPS
    for (loss, norm), (expected_loss, expected_norm) in zip(ours, reference, strict=True):
        assert loss == pytest.approx(expected_loss, abs=0.05)
        assert norm == pytest.approx(expected_norm, rel=0.05)
