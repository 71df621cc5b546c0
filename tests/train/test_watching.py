"""Who watches a run, and who does not; a stage that trains the embeddings alone is told, or ended, when it is flat."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ONLY = ["--mixed_precision", "fp32", "--freeze_non_embeds_params", "--micro_batch_size", 64, "--num_epochs", 99]
SHORT = ["--mixed_precision", "fp32", "--max_steps", 4, "--micro_batch_size", 8]
FLAT = "the embeddings-only stage has stopped paying"


def age(checkpoint: Path, losses: list[float]) -> None:
    """Let a checkpoint have seen 199 steps, two of each loss: the next makes it two hundred, enough to judge."""
    file = checkpoint / "running_states.json"
    state = json.loads(file.read_text())
    curve = state["watched"]["loss_curve"]
    assert (curve["size"], len(curve["means"]), curve["flat_at"]) == (1, 2, None)
    curve.update(size=2, means=losses[:99], open_sum=losses[99], open_steps=1)
    file.write_text(json.dumps(state))


def test_it_is_told_once_or_ended(train_on: Callable[..., Any], tmp_path: Path) -> None:
    flags = [*ONLY, "--max_steps", 6, "--lr", 1e-9, "--save_interval", 2]
    first = train_on(1, tmp_path / "a", *flags)
    assert first.code == 0, first.output
    assert FLAT not in first.output
    checkpoint = tmp_path / "a" / "epoch-1_step-2"
    age(checkpoint, [first.metrics[1]["loss"]] * 100)
    told = train_on(1, tmp_path / "b", *flags, "--load_checkpoint", checkpoint)
    assert told.code == 0, told.output
    assert told.output.count(FLAT) == 1
    assert f"step 3: {FLAT}" in told.output
    assert f"--load_checkpoint {tmp_path / 'b' / 'modeling'}" in told.output
    assert [line["step"] for line in told.metrics] == [3, 4, 5, 6]
    later = train_on(1, tmp_path / "c", *flags, "--load_checkpoint", tmp_path / "b" / "epoch-3_step-4")
    assert later.code == 0, later.output
    assert FLAT not in later.output, "it was said before the checkpoint"
    ended = train_on(2, tmp_path / "d", *flags, "--load_checkpoint", checkpoint, "--stop_when_flat")
    assert ended.code == 0, ended.output
    assert [line["step"] for line in ended.metrics] == [3]
    assert ended.output.count(FLAT) == 1
    assert (tmp_path / "d" / "modeling" / "config.json").is_file()


def test_a_falling_loss_and_a_stage_that_trains_everything_are_let_be(
    train_on: Callable[..., Any], tmp_path: Path
) -> None:
    flags = [*ONLY, "--max_steps", 3, "--lr", 1e-2, "--save_interval", 2]
    first = train_on(1, tmp_path / "a", *flags)
    checkpoint = tmp_path / "a" / "epoch-1_step-2"
    age(checkpoint, [first.metrics[1]["loss"] + 2 - 0.02 * place for place in range(100)])
    falling = train_on(1, tmp_path / "b", *flags, "--load_checkpoint", checkpoint, "--stop_when_flat")
    assert falling.code == 0, falling.output
    assert FLAT not in falling.output
    everything = [flag for flag in flags if flag != "--freeze_non_embeds_params"]
    run = train_on(1, tmp_path / "c", *everything)
    assert run.code == 0, run.output
    state = json.loads((tmp_path / "c" / "epoch-1_step-2" / "running_states.json").read_text())
    assert state["watched"] == {}


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--new_rows_interval", 5], "has no new tokens (no expansion.json)"),
        (["--new_rows_interval", -1], "--new_rows_interval is -1"),
        (["--new_rows_interval", 5, "--lora_rank", 2, "--lora_train_embeddings", "no"], "trains no embeddings"),
        (["--stop_when_flat"], "--stop_when_flat ends a stage that trains the embeddings alone"),
        (["--stop_when_flat", "--train_new_rows_only", "--lora_rank", 2], "this one trains more"),
    ],
)
def test_what_makes_no_sense_is_refused(
    train_on: Callable[..., Any], tmp_path: Path, flags: list[object], complaint: str
) -> None:
    run = train_on(1, tmp_path / "run", "--mixed_precision", "fp32", *flags)
    assert run.code == 2
    assert complaint in run.output
    assert not (tmp_path / "run").exists()


def test_without_an_expansion_nothing_is_said(train_on: Callable[..., Any], tmp_path: Path) -> None:
    run = train_on(1, tmp_path / "run", *SHORT, "--save_interval", 2)
    assert run.code == 0, run.output
    assert "new rows" not in run.output
    assert not any("new_rows" in line for line in run.metrics)
    state = json.loads((tmp_path / "run" / "epoch-0_step-2" / "running_states.json").read_text())
    assert state["watched"] == {}


def test_an_expansion_that_added_nothing_is_said_and_no_more(
    train_on: Callable[..., Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    model_dir = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (model_dir / "expansion.json").write_text('{"base_tokens": 9, "num_tokens": 9}')
    run = train_on(1, tmp_path / "run", *SHORT, model_dir=model_dir)
    assert run.code == 0, run.output
    assert run.output.count("no reports on new rows") == 1
