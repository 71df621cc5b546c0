"""Killed between the two outputs' names, or while planning: the same command goes on, and nothing stays behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from colossal_llama2 import outputs
from colossal_llama2.dataset.preparation import PrepareSettings
from colossal_llama2.dataset.prepare_pretrain_dataset import main
from colossal_llama2.errors import InputError

RECORDS = [{"text": f"document {number} of a few"} for number in range(20)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_jsonl_output_gets_its_name_first_and_the_same_command_writes_it_again(
    tmp_path: Path,
    settings_for: Callable[..., PrepareSettings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = settings_for(tmp_path, RECORDS)
    main(settings)
    assert "written again" not in capsys.readouterr().err
    arrow, jsonl = contents(tmp_path / "arrow"), contents(tmp_path / "jsonl")
    for name in ("arrow", "jsonl"):
        shutil.rmtree(tmp_path / name)
    plain = outputs.replace_directory

    def killed(work: Path, target: Path, flushed: bool = True) -> None:
        if target.name == "arrow":
            raise KeyboardInterrupt
        plain(work, target, flushed)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(outputs, "replace_directory", killed)
        main(settings)
    assert (tmp_path / "jsonl").is_dir()
    assert not (tmp_path / "arrow").exists()
    with pytest.raises(InputError, match="jsonl: exists already"):
        main(replace(settings, mix=replace(settings.mix, seed=7)))  # another run's output is not ours to replace
    main(settings)
    assert f"{tmp_path / 'jsonl'} is of these settings" in capsys.readouterr().err
    assert contents(tmp_path / "arrow") == arrow
    assert contents(tmp_path / "jsonl") == jsonl


def test_plans_of_killed_runs_are_removed(tmp_path: Path, settings_for: Callable[..., PrepareSettings]) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    abandoned = tmp_path / "cache" / f".plan.partial-{host}-{ended.pid}"
    of_another = tmp_path / "cache" / f".plan.partial-{host}-{os.getppid()}"
    for folder in (abandoned, of_another):
        folder.mkdir(parents=True)
    main(settings_for(tmp_path, RECORDS))
    assert [path.name for path in (tmp_path / "cache").glob(".plan*")] == [of_another.name]
