"""Reward models: the same losses as plain training on one answer at a time, checkpoints, and what is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama2.model.scalar_head import load_scorer, start_head

PRECISE = ["--mixed_precision", "fp32"]


def score(model: Any, ids: Any) -> torch.Tensor:
    """Score one answer alone, through transformers' own attention: the last token's."""
    return model(input_ids=torch.tensor(ids.astype(int))[None], use_cache=False).logits[0, 0]


def step_loss(model: Any, rows: list[Any]) -> torch.Tensor:
    """Mean over prompts of the mean over its pairs of -log sigmoid(margin), written out."""
    of_prompts = []
    for row in rows:
        ends = [0, *row.seq_lens.cumsum().tolist()]
        scored = [score(model, row.input_ids[begin:end]) for begin, end in itertools.pairwise(ends)]
        ordered = list(itertools.permutations(zip(row.ranks.tolist(), scored, strict=True), 2))
        losses = [-torch.log(torch.sigmoid(b - w)) for (rank, b), (other, w) in ordered if rank < other]
        if losses:
            of_prompts.append(torch.stack(losses).mean())
    return torch.stack(of_prompts).mean()


@pytest.fixture(scope="session")
def plain_losses(parity_reference: Any, tiny_model_dir: Path, preference_dir: Path) -> list[float]:
    """Give the losses of five steps of four prompts in plain PyTorch."""
    from transformers import LlamaForSequenceClassification

    model: Any = LlamaForSequenceClassification.from_pretrained(
        tiny_model_dir, num_labels=1, dtype=torch.float32, attn_implementation="eager"
    )
    start_head(model, parity_reference.SEED)
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    curve = parity_reference.train_plainly(model, groups, preference_dir, parity_reference.PlainSteps(), step_loss)
    return [loss for loss, _ in curve]


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        ([*PRECISE, "--micro_batch_size", 2], 2e-5),
        (["--mixed_precision", "bf16", "--plugin", "gemini", "--accumulation_steps", 2], 2e-2),
        ([*PRECISE, "--plugin", "3d", "--tp", 2, "--zero", 0, "--micro_batch_size", 4], 2e-5),
    ],
    ids=["zero2", "gemini", "tp2"],
)
def test_the_losses_are_those_of_plain_training(
    align_on: Callable[..., Any],
    preference_dir: Path,
    tmp_path: Path,
    plain_align_flags: list[object],
    plain_losses: list[float],
    flags: list[object],
    tolerance: float,
) -> None:
    evaluated = ["--eval_interval", 3, "--eval_dataset", preference_dir / "holdout"]
    run = align_on(2, "reward", preference_dir, tmp_path / "out", *plain_align_flags, *flags, *evaluated)
    assert run.code == 0, run.output
    assert [line["loss"] for line in run.metrics] == pytest.approx(plain_losses, abs=tolerance)
    saved = tmp_path / "out" / "modeling"
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert load_scorer(saved, "fp32").get_submodule("score").weight.shape == (1, 32)
