"""Training N steps equals training k, ending in whatever way, resuming, and training N - k: to the last bit."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

FLAGS = ["--max_steps", 10, "--lr", 1e-2, "--num_epochs", 2, "--micro_batch_size", 2, "--accumulation_steps", 2]
SAME_ROWS = ["--max_steps", 7, "--lr", 1e-2, "--num_epochs", 2, "--adam_eps", 1e-4]
METRICS = Path("run") / "metrics.jsonl"


def weights(model_dir: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in model_dir.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def assert_same_weights(left: Path, right: Path) -> None:
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys() != set()
    assert all(torch.equal(a[name], b[name]) for name in a)


def end_early(command: list[str], save_dir: Path, after: int, how: signal.Signals) -> int:
    """Start a run, send a signal to all its processes once `after` steps are logged, return the exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not ((save_dir / METRICS).is_file() and (save_dir / METRICS).read_text().count("\n") >= after):
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, how)
    return process.wait(timeout=120)


@pytest.mark.parametrize(
    ("plugin", "precision"),
    [
        ("zero2", "bf16"),
        pytest.param("zero2", "fp16", marks=pytest.mark.long),
        pytest.param("zero2", "fp32", marks=pytest.mark.long),
        pytest.param("zero2_cpu", "bf16", marks=pytest.mark.long),
        pytest.param("gemini", "bf16", marks=pytest.mark.long),
        pytest.param("gemini_auto", "fp16", marks=pytest.mark.long),
        pytest.param("ddp", "fp16", marks=pytest.mark.long),
        pytest.param("3d --zero 0", "bf16", marks=pytest.mark.long),
        pytest.param("3d --zero 2", "fp16", marks=pytest.mark.long),
        pytest.param("3d --tp 2", "bf16", marks=pytest.mark.long),
        pytest.param("3d --pp 2", "fp16", marks=pytest.mark.long),
        pytest.param("ddp", "fp32", marks=pytest.mark.long),
    ],
)
def test_resuming_is_exact_on_two_ranks(
    train_on: Callable[..., Any], tmp_path: Path, plugin: str, precision: str
) -> None:
    flags = [*FLAGS, "--plugin", *plugin.split(), "--mixed_precision", precision]
    if "--tp" in plugin or "--pp" in plugin:  # both ranks see the same rows: twice as many, so that an epoch ends
        flags[flags.index("--micro_batch_size") + 1] = 4
    whole = train_on(2, tmp_path / "whole", *flags, "--save_interval", 3)
    assert whole.code == 0, whole.output
    checkpoint = tmp_path / "whole" / "epoch-0_step-6"
    resumed = train_on(2, tmp_path / "resumed", *flags, "--load_checkpoint", checkpoint)
    assert resumed.code == 0, resumed.output
    assert [line["step"] for line in resumed.metrics] == [7, 8, 9, 10]
    assert {line["epoch"] for line in whole.metrics} == {0, 1}, "no epoch ended, so that was not tested"
    assert resumed.curve() == whole.curve()[6:]
    assert_same_weights(tmp_path / "resumed" / "modeling", tmp_path / "whole" / "modeling")


def test_a_kill_loses_nothing_but_the_steps_since_the_checkpoint(
    train_on: Callable[..., Any], train_command: Callable[..., list[str]], tmp_path: Path
) -> None:
    flags = [*FLAGS, "--mixed_precision", "bf16", "--save_interval", 2]
    whole = train_on(1, tmp_path / "whole", *flags)
    assert whole.code == 0, whole.output
    killed = tmp_path / "killed"
    assert end_early(train_command(1, killed, *flags), killed, 5, signal.SIGKILL) == -signal.SIGKILL
    again = train_on(1, killed, *flags, "--load_checkpoint", "latest")
    assert again.code == 0, again.output
    assert again.curve() == whole.curve()
    assert_same_weights(killed / "modeling", tmp_path / "whole" / "modeling")


@pytest.mark.parametrize("how", [[], pytest.param(["--async_save"], marks=pytest.mark.long)])
def test_sigterm_saves_and_leaves_and_the_rest_is_the_same(
    train_on: Callable[..., Any], train_command: Callable[..., list[str]], tmp_path: Path, how: list[str]
) -> None:
    flags = [*FLAGS, "--mixed_precision", "bf16", "--max_steps", 60, "--num_epochs", 10]
    whole = train_on(1, tmp_path / "whole", *flags)
    stopped = tmp_path / "stopped"
    assert end_early(train_command(1, stopped, *flags, *how), stopped, 3, signal.SIGTERM) == 143
    (checkpoint,) = stopped.glob("epoch-*_step-*")
    assert not (stopped / "modeling").exists()
    rest = train_on(1, stopped, *flags, "--load_checkpoint", "latest")
    assert rest.code == 0, rest.output
    assert f"resumed {checkpoint}" in rest.output
    assert rest.curve() == whole.curve()


@pytest.mark.parametrize(
    ("plugin", "precision", "ranks"),
    [
        ("zero2", "fp32", 1),
        pytest.param("zero2", "fp32", 4, marks=pytest.mark.long),
        pytest.param("zero2_cpu", "fp32", 4, marks=pytest.mark.long),
        pytest.param("zero2_cpu", "fp32", 1, marks=pytest.mark.long),
        pytest.param("ddp", "fp32", 1, marks=pytest.mark.long),
        pytest.param("ddp", "fp32", 4, marks=pytest.mark.long),
        pytest.param("gemini", "bf16", 1, marks=pytest.mark.long),
        pytest.param("gemini", "bf16", 4, marks=pytest.mark.long),
        pytest.param("gemini_auto", "bf16", 4, marks=pytest.mark.long),
    ],
)
def test_another_number_of_ranks_continues_the_same_curve(
    train_on: Callable[..., Any], tmp_path: Path, plugin: str, precision: str, ranks: int
) -> None:
    """Eight rows a step throughout, and an epsilon that does not blow up rounding noise."""
    kind = ["--plugin", plugin, "--mixed_precision", precision]
    whole = train_on(2, tmp_path / "whole", *SAME_ROWS, *kind, "--micro_batch_size", 4, "--save_interval", 3)
    assert whole.code == 0, whole.output
    checkpoint = tmp_path / "whole" / "epoch-0_step-3"
    division = ["--micro_batch_size", 8 // ranks]
    other = train_on(ranks, tmp_path / "other", *SAME_ROWS, *kind, *division, "--load_checkpoint", checkpoint)
    assert other.code == 0, other.output
    assert f"saved by 2 ranks, continued by {ranks}" in other.output
    assert [line["tokens"] for line in other.metrics] == [line["tokens"] for line in whole.metrics[3:]]
    assert_same_curve(other.metrics, whole.metrics[3:], exact=precision == "fp32")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("zero2", "fp32"), ("ddp", "fp32")),
        pytest.param(("ddp", "fp32"), ("zero2_cpu", "fp32"), marks=pytest.mark.long),
        pytest.param(("zero2_cpu", "fp32"), ("zero2", "fp32"), marks=pytest.mark.long),
        pytest.param(("zero2", "bf16"), ("gemini", "bf16"), marks=pytest.mark.long),
        pytest.param(("gemini", "bf16"), ("zero2", "bf16"), marks=pytest.mark.long),
        pytest.param(("gemini_auto", "fp16"), ("ddp", "bf16"), marks=pytest.mark.long),
        pytest.param(("ddp", "fp16"), ("gemini_auto", "fp16"), marks=pytest.mark.long),
    ],
)
def test_another_plugin_or_precision_continues_the_same_curve(
    train_on: Callable[..., Any], tmp_path: Path, before: tuple[str, str], after: tuple[str, str]
) -> None:
    names = ("--plugin", "--mixed_precision")
    old, new = ([flag for pair in zip(names, kind, strict=True) for flag in pair] for kind in (before, after))
    rows = [*SAME_ROWS, "--micro_batch_size", 4]
    whole = train_on(2, tmp_path / "whole", *rows, *old, "--save_interval", 3)
    assert whole.code == 0, whole.output
    checkpoint = tmp_path / "whole" / "epoch-0_step-3"
    other = train_on(2, tmp_path / "other", *rows, *new, "--load_checkpoint", checkpoint)
    assert other.code == 0, other.output
    assert f"saved by --plugin {before[0]}, continued by {after[0]}" in other.output
    assert ("weights and moments go on in fp32" in other.output) == (before[1] != after[1])
    assert_same_curve(other.metrics, whole.metrics[3:], exact=before[1] == after[1] == "fp32")


def test_saving_in_a_thread_changes_nothing_that_is_trained_or_saved(
    train_on: Callable[..., Any], tmp_path: Path
) -> None:
    flags = [*FLAGS, "--mixed_precision", "fp32", "--max_steps", 7, "--save_interval", 2]
    at_once = train_on(2, tmp_path / "at_once", *flags)
    by_thread = train_on(2, tmp_path / "by_thread", *flags, "--async_save")
    assert at_once.code == by_thread.code == 0, by_thread.output
    assert by_thread.curve() == at_once.curve()
    checkpoints = [path.name for path in sorted((tmp_path / "at_once").glob("epoch-*_step-*"))]
    assert len(checkpoints) == 3
    for name in checkpoints:
        files = [path for path in sorted((tmp_path / "at_once" / name).rglob("*")) if path.is_file()]
        for path in files:
            same = tmp_path / "by_thread" / path.relative_to(tmp_path / "at_once")
            assert same.read_bytes() == path.read_bytes(), same


@pytest.mark.long
def test_kills_at_any_moment_lose_nothing(
    warm_ranks: Any, tmp_path: Path, tiny_model_dir: Path, corpus_dir: Path
) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "random_kills.py"
    specification = importlib.util.spec_from_file_location("random_kills", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["random_kills"] = module  # dataclasses look themselves up there
    specification.loader.exec_module(module)
    flags = ["--pretrained", tiny_model_dir, "--dataset", corpus_dir, "--max_length", 48, "--num_epochs", 50]
    flags += ["--mixed_precision", "bf16", "--lr", 1e-2]
    tally = module.kill_again_and_again(warm_ranks, flags, tmp_path, kills=7, seed=3)
    assert tally.problems == []
    assert sum(tally.kills.values()) == 7
    assert all(tally.kills.values()), "a moment was never tried"
    assert tally.while_saving
    assert module.compare(tmp_path / "whole", tmp_path / "killed") == []
    metrics = tmp_path / "killed" / METRICS
    metrics.write_text(metrics.read_text().replace('"step": 5,', '"step": 6,'))
    assert module.compare(tmp_path / "whole", tmp_path / "killed"), "the comparison sees nothing"


def assert_same_curve(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], exact: bool) -> None:
    """Compare losses and gradient norms: to fp32 rounding, or within what half precision makes of the same numbers."""
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-5 if exact else 0.01)
        assert mine["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4 if exact else 0.01)
    assert ours
