"""The throughput benchmark runs, and its arithmetic is right: a figure nobody can recompute is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2 import cli
from colossal_llama2.train.settings import TrainSettings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """Import the script as a user starts it: from the repository's root."""
    sys.path.insert(0, str(ROOT))
    try:
        import benchmarks.train_throughput as module
    finally:
        sys.path.remove(str(ROOT))
    return module


def run_of(*seconds: float) -> dict[str, Any]:
    return {
        "steps": [[9.0, 9.0], *([value, value / 2] for value in seconds)],
        "losses": [7.0, 6.0],
        "peak_memory": 2**31,
    }


def test_ratios_are_of_neighbouring_steps_and_leave_the_warm_up_out(benchmark: Any) -> None:
    order = {"warm_up": 1, "lockstep": True}
    result = {"tokens_a_step": 100, "flops_a_step": 1e9, "peak_flops": 1e10, "measured_matmul_flops": 5e9}
    found = {
        "ours": [run_of(1.0, 2.0, 4.0)],
        "trainer": [run_of(2.0, 2.0, 2.0)],
        "plain": [{"failed": "exit 1", "said": "x"}],
    }
    rows = benchmark.summary(found, order, result)["variants"]
    assert rows["ours"]["tokens_per_second"] == 50
    assert rows["ours"]["mfu"] == 0.05
    assert rows["ours"]["share_of_measured_matmul"] == 0.1
    assert (rows["ours"]["measured"]["median"], rows["ours"]["measured"]["pairs"]) == (1.0, 3)
    assert rows["ours"]["predicted"] is not None
    assert rows["trainer"]["measured"] is None
    assert rows["plain"]["failed"] == "exit 1"
    assert "plain" in benchmark.table({**result, "variants": rows})


def test_every_variant_is_compared_with_one_there_is_and_says_why(benchmark: Any) -> None:
    assert len(benchmark.VARIANTS) > 5
    for name, variant in benchmark.VARIANTS.items():
        assert variant.against in benchmark.VARIANTS, name
        assert (variant.predicted is None) == (variant.because == ""), name


def test_train_py_knows_every_flag_of_a_variant(benchmark: Any) -> None:
    needed = ["--pretrained", "model", "--dataset", "corpus", "--save_dir", "out"]
    ours = [variant for variant in benchmark.VARIANTS.values() if variant.contender == "ours"]
    assert any(flag.startswith("--") for variant in ours for flag in variant.flags)
    for variant in ours:
        # the contender knows these by itself
        own = [flag for flag in variant.flags if flag not in ("read_at_once", "count_waits")]
        cli.parse(TrainSettings, [*needed, *own])


@pytest.mark.long
def test_all_contenders_learn_the_same(tmp_path: Path) -> None:
    """The card's script in its dry form: the same rows and weights, so the first losses are one another's."""
    output = tmp_path / "speed.json"
    more = ["--variants", "ours", "trainer", "plain", "--runs", "1"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu_speed.py"), "--dry", "--output", str(output), *more],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(output.read_text())["variants"]
    assert set(rows) == {"ours", "trainer", "plain"}
    first = rows["ours"]["first_and_last_loss"][0]
    assert rows["plain"]["first_and_last_loss"][0] == pytest.approx(first, abs=1e-4)
