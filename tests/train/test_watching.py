"""A stage that trains the embeddings alone is told, or ended, when its loss has stopped falling; once, and exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ONLY = ["--mixed_precision", "fp32", "--freeze_non_embeds_params", "--micro_batch_size", 64, "--num_epochs", 99]
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
