"""A road of two real stages on two ranks: stopped in the second one, gone on with, and the same as one not stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.align.road import read_road
from colossal_llama2.align.road_walk import Processes

ROOT = Path(__file__).parents[2]
_ROAD = """\
pretrained: {model}
road_dir: {work}/{name}
nproc_per_node: 2
plugin: zero2
mixed_precision: fp32
max_length: 64
save_interval: 10
log_interval: 1
num_epochs: 500
seed: 3
prepare:
  - name: corpus
    tool: prepare_pretrain_dataset
    data_input_dirs: {work}/text.jsonl
    num_spliced_dataset_bins: 2
    num_workers: 1
stages:
  - name: inject
    stage: pretrain
    dataset: $corpus
    max_steps: 3
  - name: talk
    stage: sft
    dataset: {chats}
    max_steps: {steps}
"""


def write_road(work: Path, name: str, model: Path, chats: Path, steps: int) -> Path:
    path = work / f"{name}.yaml"
    path.write_text(_ROAD.format(model=model, work=work, name=name, chats=chats, steps=steps), encoding="utf-8")
    return path


def command(path: Path) -> list[str]:
    return [sys.executable, "-W", "ignore", str(ROOT / "train.py"), "--stages", str(path)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_road_stopped_by_sigterm_goes_on_where_it_was(tmp_path: Path, tiny_model_dir: Path, sft_dir: Path) -> None:
    words = ["the quick brown fox", "a lazy dog jumps", "今天 天气 很好"]
    records = [{"source": "", "target": " ".join(words[: 1 + n % 3]), "category": "a"} for n in range(60)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    road = write_road(tmp_path, "stopped", tiny_model_dir, sft_dir, 40)
    metrics = tmp_path / "stopped" / "talk" / "run" / "metrics.jsonl"
    process = subprocess.Popen(command(road), env=environment(), stdout=subprocess.PIPE, text=True)
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "the road ends at step talk with exit code 143; the same command goes on from there" in said
    assert losses(tmp_path / "stopped" / "talk")[-1][0] < 40
    done = subprocess.run(command(road), env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "inject (pretrain): done already" in done.stdout
    assert "talk (sft): was broken off, resumed from its latest checkpoint" in done.stdout
    whole = write_road(tmp_path, "whole", tiny_model_dir, sft_dir, 40)
    straight = subprocess.run(command(whole), env=environment(), capture_output=True, text=True, check=False)
    assert straight.returncode == 0, straight.stdout + straight.stderr
    assert losses(tmp_path / "stopped" / "talk") == losses(tmp_path / "whole" / "talk")
    assert len(losses(tmp_path / "whole" / "talk")) == 40


def test_a_mistake_that_only_a_step_can_find_is_its_own_line_and_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jsonl").write_text("not a record\n")
    path = tmp_path / "road.yaml"
    path.write_text(
        f"pretrained: {tmp_path}\nroad_dir: {tmp_path}/out\nstages:\n"
        f"  - {{name: c, tool: prepare_pretrain_dataset, data_input_dirs: {tmp_path}/text.jsonl}}\n"
        "  - {name: a, stage: pretrain, dataset: $c}\n",
        encoding="utf-8",
    )
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before[signal.SIGHUP] = signal.getsignal(signal.SIGHUP)
    try:
        run = Processes()
        assert run(read_road(path).steps[0], ()) == 2
        assert capfd.readouterr().err.startswith("error: ")
        run.stop.number = signal.SIGTERM
        assert run(read_road(path).steps[0], ()) == 143
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
