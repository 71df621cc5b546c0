"""What a profile says: a trace that opens, and a table whose parts are where they belong."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from colossal_llama2.engine.named_ranges import HEAD_AND_LOSS, OPTIMIZER
from colossal_llama2.errors import InputError
from colossal_llama2.train.profile import DATA_WAIT, KINDS, describe, profiler_of, seconds_by_kind


def profiled_step() -> dict[str, float]:
    """Do a step whose head is far larger than all else; return where its time went."""
    torch.manual_seed(0)
    body, head = nn.Linear(32, 32), nn.Linear(32, 8192)
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], fused=True)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        with record_function(DATA_WAIT):
            inputs = torch.randn(1, 4, 256, 32)
        hidden = torch.nn.functional.scaled_dot_product_attention(body(inputs), inputs, inputs, is_causal=True)
        with record_function(HEAD_AND_LOSS):
            loss = head(hidden).logsumexp(-1).sum()
        loss.backward()
        with record_function(OPTIMIZER):
            optimizer.step()
    return seconds_by_kind(recorded.events())


def test_time_goes_to_what_it_belongs_to() -> None:
    seconds = profiled_step()
    assert tuple(seconds) == KINDS
    for kind in ("attention", "matmul", "optimizer", DATA_WAIT):
        assert seconds[kind] > 0, kind
    # its backward pass among it: that alone is two thirds of the head's arithmetic
    assert seconds[HEAD_AND_LOSS] > 0.6 * sum(seconds.values())
    assert seconds["communication"] == 0


def test_the_table_adds_up() -> None:
    table = describe({"matmul": 0.03, "attention": 0.01}, num_steps=2).splitlines()
    assert [line.split() for line in table[1:]] == [["matmul", "15.00", "75.0%"], ["attention", "5.00", "25.0%"]]


@pytest.mark.long
def test_a_run_leaves_a_trace_and_a_table(train_on: Callable[..., Any], tmp_path: Path) -> None:
    run = train_on(1, tmp_path / "out", "--mixed_precision", "bf16", "--max_steps", 6, "--profile", 2)
    assert run.code == 0, run.output
    folder = tmp_path / "out" / "run" / "profile"
    assert sorted(path.name for path in folder.iterdir()) == ["rank-0.json.gz", "rank-0.txt"]
    with gzip.open(folder / "rank-0.json.gz", "rt") as trace:
        names = {event.get("name") for event in json.load(trace)["traceEvents"]}
    assert {DATA_WAIT, HEAD_AND_LOSS, OPTIMIZER, "aten::mm"} <= names
    table = (folder / "rank-0.txt").read_text()
    assert table in run.output
    assert "rank-0.json.gz" in run.output
    assert all(kind in table for kind in KINDS)
    assert len(run.metrics) == 6


def test_too_few_steps_to_record_are_refused() -> None:
    class Settings:
        class output:
            profile = 4

        run_dir = Path("run")

    settings: Any = Settings
    with pytest.raises(InputError, match="--profile 4 records after 3 steps, and the run has 5 steps left"):
        profiler_of(settings, 1, 6)
    Settings.output.profile = 0
    assert profiler_of(settings, 1, 6) is None
