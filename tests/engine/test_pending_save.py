"""A save by a thread is the one that would have been made at once; one that fails leaves nothing behind."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama2.engine.checkpoint import begin_checkpoint, load_checkpoint, save_checkpoint, save_model
from colossal_llama2.engine.pending_save import SaveError
from colossal_llama2.engine.plugins import PluginName

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.mark.parametrize("plugin", ["zero2", "zero2_cpu", "gemini", "ddp"])
def test_a_thread_writes_what_would_have_been_written_at_once(tiny: Any, tmp_path: Path, plugin: PluginName) -> None:
    """Byte for byte, although training has gone on in the meantime."""
    base = tiny.model_folder(tmp_path / "base")
    session = tiny.boosted(base, plugin)
    tiny.train_a_step(session)
    at_once = save_checkpoint(session, tiny.STATE, tmp_path / "sync", base)
    save = begin_checkpoint(session, tmp_path / "async", at_once.name, base, in_background=True)
    assert not save.target.exists()
    tiny.train_a_step(session)
    save.complete(tiny.STATE)
    assert save.finished
    files = [path.relative_to(at_once) for path in sorted(at_once.rglob("*")) if path.is_file()]
    assert len(files) > 7
    assert files == [path.relative_to(save.target) for path in sorted(save.target.rglob("*")) if path.is_file()]
    assert [name for name in files if (at_once / name).read_bytes() != (save.target / name).read_bytes()] == []


@pytest.fixture
def no_large_files() -> Iterator[None]:
    """Let the system refuse every file beyond 4 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("in_background", [False, True])
def test_what_cannot_be_written_leaves_nothing_behind(
    tiny: Any, tmp_path: Path, request: pytest.FixtureRequest, in_background: bool
) -> None:
    base = tiny.model_folder(tmp_path / "base")
    session = tiny.boosted(base, "zero2")
    before = save_checkpoint(session, tiny.STATE, tmp_path / "out", base)
    request.getfixturevalue("no_large_files")
    with pytest.raises(SaveError, match="File too large"):
        begin_checkpoint(session, tmp_path / "out", "epoch-0_step-9", base, in_background).complete(tiny.STATE)
    with pytest.raises(SaveError, match="File too large"):
        save_model(session, tmp_path / "out" / "modeling", base, torch.float32)
    assert list((tmp_path / "out").iterdir()) == [before]
    tiny.train_a_step(session)  # and the session is as it was


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(tiny: Any, tmp_path: Path) -> None:
    base = tiny.model_folder(tmp_path / "base")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", small], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a small file system")
    try:
        session = tiny.boosted(base, "zero2")
        before = save_checkpoint(session, tiny.STATE, small, base)
        with pytest.raises(SaveError, match="No space left on device"):
            begin_checkpoint(session, small, "epoch-0_step-9", base).complete(tiny.STATE)
        assert list(small.iterdir()) == [before]
        load_checkpoint(session, tiny.STATE, before)
    finally:
        subprocess.run(["umount", small], check=True)
