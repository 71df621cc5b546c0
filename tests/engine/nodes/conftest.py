"""A stand-in for ssh: it runs the command on this machine, in an environment as bare as a fresh login's."""

from __future__ import annotations

import os
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
exec env -i PATH="$PATH" HOME="$HOME" OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= PYTHONPATH="$PYTHONPATH" \\
    /bin/bash -c "${@: -1}"
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
