"""metrics.jsonl has one line a step, also after a continuation that was lost."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.train.run_log import METRICS_FILE, RunLog, StepMetrics

METRICS = StepMetrics(
    step=1, epoch=0, tokens=100, learned_tokens=90, loss=2.5, grad_norm=1.0, lr=1e-4, tokens_per_second=1e3, mfu=0.3,
    memory=1 << 20, seconds=0.1, data_seconds=0.01, skipped=False,
)  # fmt: skip


def write(run_dir: Path, first: int, last: int, loss: float = 2.5) -> None:
    log = RunLog(run_dir, first, 10, interval=1)
    for step in range(first + 1, last + 1):
        log.step(replace(METRICS, step=step, loss=loss))
    log.close()


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / METRICS_FILE).read_text().splitlines()]


def test_one_line_a_step(tmp_path: Path) -> None:
    write(tmp_path, 0, 5)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    assert any(path.name.startswith("events.out.tfevents") for path in tmp_path.iterdir())


def test_a_resume_replaces_what_was_lost(tmp_path: Path) -> None:
    write(tmp_path, 0, 5)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 6, "lo')  # torn by a kill
    write(tmp_path, 3, 6, loss=1.0)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (1, 2.5), (2, 2.5), (3, 2.5), (4, 1.0), (5, 1.0), (6, 1.0),
    ]  # fmt: skip


def test_an_overflow_is_said_in_json_and_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, 0, 1, interval=1)
    log.step(replace(METRICS, grad_norm=None, skipped=True))
    log.close()
    assert lines(tmp_path)[0]["grad_norm"] is None
    assert "overflow" in capsys.readouterr().out


def test_figures_of_new_rows_stand_in_the_lines_of_their_steps_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, 0, 2, interval=1)
    log.step(METRICS)
    log.step(replace(METRICS, step=2, new_rows={"loss_new": None, "input": {"norm_mean": 0.5}}))
    log.remark(2, "new rows: fine", {"new_rows/input/neighbours": "| a | b |"})
    log.close()
    first, second = lines(tmp_path)
    assert "new_rows" not in first
    assert second["new_rows"] == {"loss_new": None, "input": {"norm_mean": 0.5}}
    assert "new rows: fine" in capsys.readouterr().out


def test_lines_wait_while_the_disk_is_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on file sizes stands for the disk; no line is lost or torn."""
    log = RunLog(tmp_path, 0, 9, interval=100)
    log._events.close()  # TensorBoard writes from a thread of its own, which would print its traceback here
    log._events = None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log.step(replace(METRICS, step=1))
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / METRICS_FILE).stat().st_size + 10, before[1]))
    try:
        for step in (2, 3, 4):
            log.step(replace(METRICS, step=step))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capsys.readouterr().err.count("its lines wait in memory") == 1
    log.step(replace(METRICS, step=5))
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_stages_figures_stand_beside_the_loss_and_an_evaluation_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path, 0, 1000, interval=500)
    log.step(replace(METRICS, step=7, figures={"accuracy": 0.75, "length_correlation": None, "eval_loss": 2.0}))
    log.step(replace(METRICS, step=8))
    log.close()
    with_figures, without = lines(tmp_path)
    assert (with_figures["accuracy"], with_figures["length_correlation"], with_figures["eval_loss"]) == (0.75, None, 2)
    assert {"accuracy", "figures", "eval_loss"}.isdisjoint(without)
    assert capsys.readouterr().out.splitlines() == ["step 7: eval_loss 2.0000"]


def test_a_figure_that_is_no_number_is_null_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, 0, 1, interval=1)
    log.step(replace(METRICS, figures={"eval_loss": float("inf"), "accuracy": 0.5}))
    log.close()
    (line,) = lines(tmp_path)
    assert line["eval_loss"] is None
    assert line["accuracy"] == 0.5
    assert "step 1: eval_loss is inf; written as null" in capsys.readouterr().err
