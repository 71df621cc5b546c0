"""Outputs are whole or absent."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from colossal_llama2 import outputs
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import whole_directory, whole_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "out"
    with whole_directory(target) as work:
        (work / "x").write_text("1")
        assert not target.exists()
    assert names(target) == ["x"]
    assert names(target.parent) == ["out"]


def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_directory(tmp_path / "out") as work:
        (work / "x").write_text("1")
        raise RuntimeError
    with pytest.raises(RuntimeError), whole_file(tmp_path / "file") as path:
        path.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []


def test_what_exists_is_kept_unless_overwriting(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("1")
    with pytest.raises(InputError, match="--overwrite"), whole_directory(target):
        raise AssertionError("the block must not be entered")
    with pytest.raises(RuntimeError), whole_directory(target, overwrite=True):
        raise RuntimeError
    assert names(target) == ["old"]
    with whole_directory(target, overwrite=True) as work:
        (work / "new").write_text("2")
    assert names(target) == ["new"]
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_counts_as_absent(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "out") as work:
        (work / "x").write_text("1")
    assert names(tmp_path / "out") == ["x"]


def test_a_file_replaces_another_only_when_asked(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(InputError, match="exists already"), whole_file(target):
        raise AssertionError("the block must not be entered")
    with whole_file(target, overwrite=True) as path:
        path.write_text("new")
    assert target.read_text() == "new"


def test_a_folder_that_cannot_be_written_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write everywhere
    with pytest.raises(InputError, match="cannot be created"), whole_directory(tmp_path / "out"):
        raise AssertionError("the block must not be entered")


def test_a_parent_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be created"), whole_directory(tmp_path / "file" / "out"):
        raise AssertionError("the block must not be entered")


def test_a_folder_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "empty"):
        folder.mkdir(exist_ok=True)
        with pytest.raises(InputError, match="is a folder"), whole_file(folder, overwrite=True):
            raise AssertionError("the work must not begin")
    assert names(tmp_path) == ["empty"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    host = socket.gethostname()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = tmp_path / f".out.partial-{host}-{gone.pid}"
    alive = tmp_path / f".out.partial-{host}-{os.getppid()}"
    elsewhere = tmp_path / f".out.partial-another-{gone.pid}"
    for folder in (dead, alive, elsewhere):
        folder.mkdir()
        (folder / "half").write_text("")
    with whole_directory(tmp_path / "out") as work:
        (work / "file").write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([alive.name, elsewhere.name, "out"])


def test_what_stood_there_is_put_back_if_the_new_one_cannot_get_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("1")
    plain = Path.rename

    def rename(self: Path, to: Path) -> Path:
        if "partial" in self.name:
            raise OSError(5, "Input/output error")
        return plain(self, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"), whole_directory(target, overwrite=True) as work:
        (work / "new").write_text("2")
    assert names(target) == ["old"]
    assert names(tmp_path) == ["out"]


def test_a_cache_is_looked_through_for_abandoned_entries_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    abandoned = tmp_path / f".other.partial-{socket.gethostname()}-{ended.pid}"
    (abandoned / "deep").mkdir(parents=True)
    looked: list[Path] = []
    plain = outputs._remove_abandoned

    def look(parent: Path, pattern: str) -> None:
        looked.append(parent)
        plain(parent, pattern)

    monkeypatch.setattr(outputs, "_remove_abandoned", look)
    for number in range(3):
        with whole_directory(tmp_path / f"entry-{number}", flushed=False) as work:
            (work / "x").write_text("1")
    assert names(tmp_path) == ["entry-0", "entry-1", "entry-2"]
    assert looked == [tmp_path]
