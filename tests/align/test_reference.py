"""The reference: kept and computed as one goes are equal, a resume finds it again, and what cannot be is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FLAGS = ["--max_steps", 6, "--lr", 1e-2, "--num_epochs", 2, "--micro_batch_size", 2]
LORA = ["--mixed_precision", "fp32", "--lora_rank", 4]


def figures(run: Any) -> list[list[float]]:
    names = ("loss", "grad_norm", "accuracy", "margin")
    return [[line[name] for name in names] for line in run.metrics]


def folders(save_dir: Path) -> list[str]:
    return sorted(path.name for path in (save_dir / "reference_log_probs").glob("*"))


@pytest.mark.parametrize("stage", ["dpo", pytest.param("kto", marks=pytest.mark.long)])
def test_kept_is_the_policy_without_its_adapter(
    align_on: Callable[..., Any], preference_dir: Path, tmp_path: Path, stage: str
) -> None:
    evaluated = ["--eval_dataset", preference_dir / "holdout"]
    runs = {
        kind: align_on(2, stage, preference_dir, tmp_path / kind, *FLAGS, *LORA, "--reference", kind, *evaluated)
        for kind in ("kept", "adapter_off")
    }
    for run in runs.values():
        assert run.code == 0, run.output
    assert figures(runs["kept"]) == [pytest.approx(line, abs=1e-5) for line in figures(runs["adapter_off"])]
    assert runs["kept"].metrics[-1]["eval_loss"] == pytest.approx(
        runs["adapter_off"].metrics[-1]["eval_loss"], abs=1e-5
    )
    kinds = 2 if stage == "kto" else 1  # of sequences, for each of two sets
    assert len(folders(tmp_path / "kept")) == 2 * kinds
    assert not folders(tmp_path / "adapter_off")
    assert abs(runs["kept"].metrics[-1]["margin"]) > 1e-3, "nothing was learned, so nothing was compared"


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("dpo", ["--mixed_precision", "bf16"]),
        pytest.param("kto", ["--mixed_precision", "bf16", "--plugin", "gemini"], marks=pytest.mark.long),
        pytest.param("orpo", ["--mixed_precision", "fp16", "--plugin", "zero2_cpu"], marks=pytest.mark.long),
        pytest.param("simpo", ["--mixed_precision", "bf16", "--plugin", "3d", "--tp", 2], marks=pytest.mark.long),
        pytest.param("kto", LORA, marks=pytest.mark.long),
        pytest.param("dpo", [*LORA, "--num_epochs", 1, "--max_steps", 5], marks=pytest.mark.long),
    ],
)
def test_resuming_is_exact_and_finds_the_reference_again(
    align_on: Callable[..., Any], preference_dir: Path, tmp_path: Path, stage: str, flags: list[object]
) -> None:
    given = [*FLAGS, *flags]
    whole = align_on(2, stage, preference_dir, tmp_path / "whole", *given, "--save_interval", 3)
    assert whole.code == 0, whole.output
    (checkpoint,) = (tmp_path / "whole").glob("epoch-*_step-3")
    kept = ["--reference_log_probs", tmp_path / "whole" / "reference_log_probs"]
    more = kept if stage in ("dpo", "kto") else []
    resumed = align_on(2, stage, preference_dir, tmp_path / "resumed", *given, *more, "--load_checkpoint", checkpoint)
    assert resumed.code == 0, resumed.output
    assert "computed in" not in resumed.output
    assert resumed.curve() == whole.curve()[3:] != []


def test_a_reference_that_is_gone_is_not_made_up(
    align_on: Callable[..., Any], preference_dir: Path, tmp_path: Path
) -> None:
    flags = [*FLAGS, "--mixed_precision", "fp32", "--plugin", "ddp"]
    run = align_on(1, "dpo", preference_dir, tmp_path, *flags, "--save_interval", 3)
    assert run.code == 0, run.output
    assert "computed in" in run.output
    again = align_on(1, "dpo", preference_dir, tmp_path, *flags, "--overwrite")
    assert "computed in" not in again.output
    assert again.curve() == run.curve()
    again = align_on(1, "dpo", preference_dir, tmp_path, *flags, "--save_interval", 3, "--overwrite")
    shutil.rmtree(tmp_path / "reference_log_probs")
    resumed = align_on(1, "dpo", preference_dir, tmp_path, *flags, "--load_checkpoint", "latest")
    assert resumed.code == 2
    assert "the model that it is of is trained further" in resumed.output


@pytest.mark.long
def test_gemini_auto_takes_what_gemini_kept(align_on: Callable[..., Any], preference_dir: Path, tmp_path: Path) -> None:
    flags = [*FLAGS, "--mixed_precision", "bf16", "--reference_log_probs", tmp_path / "kept", "--plugin"]
    refused = align_on(2, "dpo", preference_dir, tmp_path / "refused", *flags, "gemini_auto")
    assert refused.code == 2
    assert "cannot run a model before its first training step" in refused.output
    gemini = align_on(2, "dpo", preference_dir, tmp_path / "gemini", *flags, "gemini")
    assert gemini.code == 0, gemini.output
    again = align_on(2, "dpo", preference_dir, tmp_path / "auto", *flags, "gemini_auto")
    assert again.code == 0, again.output
    assert [line["loss"] for line in again.metrics] == pytest.approx(
        [line["loss"] for line in gemini.metrics], abs=1e-3
    )
