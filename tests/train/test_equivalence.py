"""However ranks, micro-batches and accumulation divide a batch, training is the same: and the same as plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def reference(parity_reference: Any, tiny_model_dir: Path, corpus_dir: Path) -> list[tuple[float, float]]:
    """Give the curve of plain PyTorch."""
    curve: list[tuple[float, float]] = parity_reference.plain_curve(
        tiny_model_dir, corpus_dir, parity_reference.PlainSteps()
    )
    return curve


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
    plain_flags: list[object],
    reference: list[tuple[float, float]],
    tmp_path: Path,
    ranks: int,
    flags: list[object],
) -> None:
    run = train_on(ranks, tmp_path / "run", *plain_flags, "--mixed_precision", "fp32", *flags)
    assert run.code == 0, run.output
    ours = [(line["loss"], line["grad_norm"]) for line in run.metrics]
    assert len(ours) == len(reference) == 5
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
    plain_flags: list[object],
    reference: list[tuple[float, float]],
    tmp_path: Path,
    precision: str,
    plugin: str,
) -> None:
    flags = [*plain_flags, "--mixed_precision", precision, "--plugin", plugin, "--accumulation_steps", 2]
    run = train_on(2, tmp_path / "run", *flags)
    assert run.code == 0, run.output
    ours = [(line["loss"], line["grad_norm"]) for line in run.metrics]
    assert len(ours) == len(reference) == 5
    for (loss, norm), (expected_loss, expected_norm) in zip(ours, reference, strict=True):
        assert loss == pytest.approx(expected_loss, abs=0.05)
        assert norm == pytest.approx(expected_norm, rel=0.05)
