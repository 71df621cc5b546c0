"""Evaluation: the mean over every learned token of a set, in eval mode, at the steps asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama2.dataset.corpus import PreparedCorpus

UNMOVED = ["--mixed_precision", "fp32", "--lr", 1e-30]


@pytest.fixture(scope="session")
def whole_loss(parity_reference: Any, tiny_model_dir: Path, corpus_dir: Path) -> float:
    """Give the mean loss of the tiny model over the whole corpus, a document at a time."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        tiny_model_dir, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    corpus = PreparedCorpus.open([corpus_dir])
    with torch.no_grad():
        return float(parity_reference.token_mean(model, [corpus.row(row) for row in range(corpus.num_rows)]))


@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (1, ["--micro_batch_size", 5]),
        (2, ["--micro_batch_size", 3]),
        pytest.param(
            2,
            ["--plugin", "3d", "--pp", 2, "--zero", 0, "--micro_batch_size", 4, "--accumulation_steps", 2],
            marks=pytest.mark.long,
        ),
        pytest.param(2, ["--plugin", "3d", "--sp", 2, "--zero", 0, "--micro_batch_size", 4], marks=pytest.mark.long),
    ],
    ids=["one", "zero2", "pp2", "sp2"],
)
def test_the_loss_is_that_of_the_whole_set_with_rows_that_fill_no_batch(
    train_on: Callable[..., Any],
    corpus_dir: Path,
    tmp_path: Path,
    whole_loss: float,
    ranks: int,
    flags: list[object],
) -> None:
    steps = ["--max_steps", 5, "--eval_interval", 2, "--eval_dataset", corpus_dir]
    run = train_on(ranks, tmp_path / "out", *UNMOVED, *steps, *flags)
    assert run.code == 0, run.output
    found = {line["step"]: line["eval_loss"] for line in run.metrics if "eval_loss" in line}
    assert list(found) == [2, 4, 5]
    assert list(found.values()) == pytest.approx([whole_loss] * 3, abs=1e-5)
    assert run.output.count("eval_loss") == 3
