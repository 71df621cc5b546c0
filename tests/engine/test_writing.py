"""What one rank writes: in order, at once or by a thread, with errors kept until somebody asks."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from colossal_llama2.engine.writing import Writing, write_pickled, write_text, write_weights


@pytest.mark.parametrize("in_background", [False, True])
def test_an_error_of_the_disk_is_kept_and_the_rest_left_out(tmp_path: Path, in_background: bool) -> None:
    writing, done = Writing(in_background), []

    def refused() -> None:
        raise OSError(28, "No space left on device")

    writing.add(lambda: done.append("first"))
    writing.add(refused)
    writing.add(lambda: done.append("third"))
    assert not writing.finished
    writing.start()
    writing.wait()
    assert writing.finished
    assert done == ["first"]
    assert writing.error is not None
    assert writing.error.errno == 28


def test_a_thread_begins_when_it_is_told_and_finishes_by_itself() -> None:
    writing, may_go_on, done = Writing(in_background=True), threading.Event(), []
    writing.add(may_go_on.wait)
    writing.add(lambda: done.append(threading.current_thread().name))
    assert done == []
    writing.start()
    assert not writing.finished
    may_go_on.set()
    writing.wait()
    assert done == ["checkpoint"]


def test_an_error_of_the_program_is_raised_where_it_can_be_heard() -> None:
    writing = Writing(in_background=True)
    writing.add(lambda: 1 // 0)
    writing.start()
    with pytest.raises(ZeroDivisionError):
        writing.wait()


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {
        "a": torch.arange(6.0).reshape(2, 3),
        "b": torch.tensor([1, 2], dtype=torch.bfloat16),
        "c": torch.ones(()),
    }
    write_weights(tmp_path / "new" / "a.safetensors", tensors)
    write_pickled(tmp_path / "new" / "a.bin", {0: tensors})
    write_text(tmp_path / "new" / "a.txt", "天")
    read, pickled = load_file(tmp_path / "new" / "a.safetensors"), torch.load(tmp_path / "new" / "a.bin")[0]
    assert read.keys() == pickled.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    assert all(torch.equal(pickled[name], tensors[name]) for name in tensors)
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "天"
