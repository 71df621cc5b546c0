"""Fine-tuning: the same losses as plain training, the same noise after a resume, the set's template in the end."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2 import cli
from colossal_llama2.align import stages
from colossal_llama2.align.sft import SftSettings, main
from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.loading import load_tokenizer

PRECISE = ["--mixed_precision", "fp32"]
NOISE = ["--neftune_alpha", 15]


def losses(run: Any) -> list[float]:
    return [line["loss"] for line in run.metrics]


def evaluated(run: Any) -> list[float]:
    return [line["eval_loss"] for line in run.metrics if "eval_loss" in line]


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        ([*PRECISE, "--micro_batch_size", 2], 2e-5),
        pytest.param(
            ["--mixed_precision", "bf16", "--plugin", "gemini", "--accumulation_steps", 2], 2e-2, marks=pytest.mark.long
        ),
        pytest.param(
            [*PRECISE, "--plugin", "3d", "--tp", 2, "--zero", 0, "--micro_batch_size", 4], 2e-5, marks=pytest.mark.long
        ),
    ],
    ids=["zero2", "gemini", "tp2"],
)
def test_the_losses_are_those_of_plain_training_and_the_template_goes_along(
    align_on: Callable[..., Any],
    sft_dir: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
    parity_reference: Any,
    plain_align_flags: list[object],
    flags: list[object],
    tolerance: float,
) -> None:
    from transformers import AutoTokenizer

    measured = ["--eval_interval", 2, "--eval_dataset", sft_dir / "holdout"]
    run = align_on(2, "sft", sft_dir, tmp_path / "out", *plain_align_flags, *flags, *measured)
    assert run.code == 0, run.output
    plain = parity_reference.plain_curve(tiny_model_dir, sft_dir, parity_reference.PlainSteps())
    assert losses(run) == pytest.approx([loss for loss, _ in plain], abs=tolerance)
    assert "has another chat template" in run.output
    template = (sft_dir / "chat_template.jinja").read_text()
    saved = tmp_path / "out" / "modeling"
    assert load_tokenizer(saved).chat_template == AutoTokenizer.from_pretrained(saved).chat_template == template
    assert json.loads((saved / "tokenizer_config.json").read_text())["chat_template"] == template
    assert load_tokenizer(tiny_model_dir).chat_template != template
    assert [line["step"] for line in run.metrics if "eval_loss" in line] == [2, 4, 5]
    settings = str(tmp_path / "out" / "settings.yaml")
    assert cli.parse(SftSettings, ["--config", settings]).stage == "sft"
    assert stages.choose(["--config", settings]).settings_type is SftSettings


def test_noise_and_evaluation_are_the_same_however_ranks_divide_the_rows(
    align_on: Callable[..., Any], sft_dir: Path, tmp_path: Path, plain_align_flags: list[object]
) -> None:
    flags = [*plain_align_flags, *PRECISE, "--eval_interval", 2, "--eval_dataset", sft_dir / "holdout"]
    divided = {
        "one": (1, ["--micro_batch_size", 4]),
        "two": (2, ["--accumulation_steps", 2]),
        "tp2": (2, ["--plugin", "3d", "--tp", 2, "--zero", 0, "--micro_batch_size", 2, "--accumulation_steps", 2]),
    }
    runs = {
        name: align_on(ranks, "sft", sft_dir, tmp_path / name, *flags, *NOISE, *own)
        for name, (ranks, own) in divided.items()
    }
    assert all(run.code == 0 for run in runs.values()), [run.output for run in runs.values()]
    for name in ("two", "tp2"):
        assert losses(runs[name]) == pytest.approx(losses(runs["one"]), abs=2e-5)
        assert evaluated(runs[name]) == pytest.approx(evaluated(runs["one"]), abs=2e-5)
    quiet = align_on(1, "sft", sft_dir, tmp_path / "quiet", *flags, "--micro_batch_size", 4)
    assert abs(losses(quiet)[0] - losses(runs["one"])[0]) > 1e-3, "the noise did nothing"


def test_a_killed_run_resumes_to_the_same_losses_with_noise_and_whether_or_not_it_is_evaluated(
    align_on: Callable[..., Any], sft_dir: Path, tiny_model_dir: Path, tmp_path: Path, warm_ranks: Any
) -> None:
    flags = ["--mixed_precision", "bf16", "--max_steps", 24, "--num_epochs", 9, "--lr", 1e-3, *NOISE]
    whole = align_on(2, "sft", sft_dir, tmp_path / "whole", *flags)
    assert whole.code == 0, whole.output
    out, watched = tmp_path / "out", ["--eval_interval", 1, "--eval_dataset", sft_dir / "holdout"]
    base = ["--stage", "sft", "--pretrained", tiny_model_dir, "--dataset", sft_dir, "--save_dir", out]
    started = warm_ranks.start(2, [*base, "--max_length", 64, "--save_interval", 2, *flags, *watched])
    metrics = out / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 5):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    started.kill(signal.SIGKILL)
    assert started.wait().code != 0, "the run ended before it was killed"
    resumed = align_on(2, "sft", sft_dir, out, *flags, *watched, "--load_checkpoint", "latest")
    assert resumed.code == 0, resumed.output
    assert losses(resumed) == losses(whole)
    assert len(evaluated(resumed)) == 24


def test_an_adapter_gets_the_template_and_so_does_what_it_is_merged_into(
    align_on: Callable[..., Any], sft_dir: Path, tmp_path: Path
) -> None:
    flags = [*PRECISE, "--max_steps", 2, "--lora_rank", 2, "--lora_merge", "--lr", 1e-2, *NOISE]
    run = align_on(2, "sft", sft_dir, tmp_path / "out", *flags)
    assert run.code == 0, run.output
    for folder in ("adapter", "modeling"):
        assert load_tokenizer(tmp_path / "out" / folder).chat_template == (sft_dir / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--neftune_alpha", -1], "--neftune_alpha is -1"),
        (["--neftune_alpha", "nan"], "--neftune_alpha is nan"),
        (["--eval_interval", 5], "--eval_interval without --eval_dataset"),
        (["--eval_dataset", "absent"], "does not exist"),
        (["--dataset", "CORPUS"], "is a pretraining corpus, and this stage does not learn from that"),
        (["--dataset", "PREFERENCE"], "is a set of --type preference"),
        (["--eval_dataset", "PREFERENCE"], "is a set of --type preference"),
        (["--dataset", "SFT", "OTHER"], "by another chat template than a set before it"),
        (["--eval_dataset", "OTHER"], "by another chat template than the set that is learned from"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    sft_dir: Path,
    preference_dir: Path,
    other_sft_dir: Path,
    corpus_dir: Path,
    tiny_model_dir: Path,
    tmp_path: Path,
    flags: list[object],
    complaint: str,
) -> None:
    places = {"CORPUS": corpus_dir, "SFT": sft_dir, "PREFERENCE": preference_dir, "OTHER": other_sft_dir}
    own = [str(places.get(str(flag), flag)) for flag in flags]
    dataset = [] if "--dataset" in own else ["--dataset", str(sft_dir)]
    base = ["--pretrained", str(tiny_model_dir), "--save_dir", str(tmp_path / "out"), "--max_length", "64"]
    with pytest.raises(InputError, match=complaint):
        main(cli.parse(SftSettings, [*base, *dataset, *own]))
    assert list(tmp_path.iterdir()) == []
