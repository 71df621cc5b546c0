"""A stand-in for ssh: it runs the command on this machine, in an environment as bare as a fresh login's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

STUB = """#!/bin/bash
# ssh [options] -- TARGET COMMAND; hosts named dead* do not answer
target="${@: -2:1}"
echo "$target" >> "$STUB_LOG"
case "$target" in
    dead*) echo "ssh: connect to host $target port 22: No route to host" >&2; exit 255 ;;
    chatty*) echo "Welcome to $target"; echo '"quoted"' ;;
esac
env -i PATH="$PATH" HOME="$HOME" OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= PYTHONPATH="$PYTHONPATH" \\
    /bin/bash -c "${@: -1}"  # not exec: the death of ssh is not the death of the command
"""


@pytest.fixture
def stub_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the stand-in first on PATH; give the file where it notes the hosts it was called for."""
    folder = tmp_path / "stub bin"
    folder.mkdir()
    (folder / "ssh").write_text(STUB)
    (folder / "ssh").chmod(0o755)
    log = tmp_path / "ssh.log"
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("STUB_LOG", str(log))
    return log


@pytest.fixture
def tiny_run_flags(tiny_model_dir: Path, tmp_path: Path) -> Callable[[Path], list[str]]:
    """Give a function that spells a run of 30 steps on a tiny corpus, saved into the folder named."""
    from colossal_llama2.dataset.preparation import MixOptions, PrepareSettings, SpliceOptions, WorkOptions
    from colossal_llama2.dataset.prepare_pretrain_dataset import main

    lines = [{"source": "", "target": f"the quick brown fox jumps {i} times", "category": "a"} for i in range(80)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    main(
        PrepareSettings(
            data_input_dirs=str(tmp_path / "in.jsonl"),
            tokenizer_dir=tiny_model_dir,
            data_cache_dir=tmp_path / "cache",
            data_jsonl_output_dir=tmp_path / "jsonl",
            data_arrow_output_dir=tmp_path / "arrow",
            splicing=SpliceOptions(max_length=32),
            mix=MixOptions(num_spliced_dataset_bins=1),
            work=WorkOptions(num_workers=1),
        )
    )

    def flags(save_dir: Path) -> list[str]:
        inputs = ["--pretrained", str(tiny_model_dir), "--dataset", str(tmp_path / "arrow"), "--max_length", "32"]
        steps = ["--max_steps", "30", "--num_epochs", "9", "--save_interval", "10", "--mixed_precision", "bf16"]
        return [*inputs, *steps, "--save_dir", str(save_dir)]

    return flags
