"""Fine-tuning: the same losses as plain training, the same noise after a resume, the set's template in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2 import cli
from colossal_llama2.align import stages
from colossal_llama2.align.sft import SftSettings
from colossal_llama2.tokenizer.loading import load_tokenizer

PRECISE = ["--mixed_precision", "fp32"]


def plain_losses(model_dir: Path, dataset: Path, parity_reference: Any) -> list[float]:
    curve = parity_reference.plain_curve(model_dir, dataset, parity_reference.PlainSteps())
    return [loss for loss, _ in curve]


def plain_flags(parity_reference: Any) -> list[object]:
    plain = parity_reference
    numbers = {"lr": plain.LR, "warmup_steps": plain.WARMUP, "adam_eps": plain.EPS, "seed": plain.SEED}
    steps = ["--max_steps", plain.PlainSteps().steps]
    return [*steps, *(part for name, value in numbers.items() for part in (f"--{name}", value))]


def test_the_losses_are_those_of_plain_training_and_the_template_goes_along(
    align_on: Callable[..., Any], sft_dir: Path, tiny_model_dir: Path, tmp_path: Path, parity_reference: Any
) -> None:
    flags = [*plain_flags(parity_reference), *PRECISE, "--micro_batch_size", 2, "--eval_interval", 2]
    run = align_on(2, "sft", sft_dir, tmp_path / "out", *flags, "--eval_dataset", sft_dir / "holdout")
    assert run.code == 0, run.output
    expected = plain_losses(tiny_model_dir, sft_dir, parity_reference)
    assert [line["loss"] for line in run.metrics] == pytest.approx(expected, abs=2e-5)
    assert "has another chat template" in run.output
    template = (sft_dir / "chat_template.jinja").read_text()
    saved = tmp_path / "out" / "modeling"
    assert load_tokenizer(saved).chat_template == template
    assert json.loads((saved / "tokenizer_config.json").read_text())["chat_template"] == template
    assert load_tokenizer(tiny_model_dir).chat_template != template
    assert [line["step"] for line in run.metrics if "eval_loss" in line] == [2, 4, 5]
    repeated = cli.parse(SftSettings, ["--config", str(tmp_path / "out" / "settings.yaml")])
    assert repeated.stage == "sft"
    assert stages.choose(["--config", str(tmp_path / "out" / "settings.yaml")]).settings_type is SftSettings
