"""Kept log-probabilities: what was written is read, and nothing else is taken for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from colossal_llama2.align.reference_files import KeptIdentity, read_kept, write_kept
from colossal_llama2.errors import InputError

IDENTITY = KeptIdentity(model="a" * 64, data="b" * 64, sequences="answers", precision="bf16", count=3)
SUMS = np.array([-1.5, -2.25, 0.0], dtype=np.float32)


def test_what_was_written_is_read_and_others_are_absent(tmp_path: Path) -> None:
    assert read_kept(tmp_path, IDENTITY) is None
    write_kept(tmp_path, IDENTITY, SUMS)
    found = read_kept(tmp_path, IDENTITY)
    assert found is not None
    assert found.tolist() == SUMS.tolist()
    for other in (replace(IDENTITY, model="c" * 64), replace(IDENTITY, precision="fp32")):
        assert read_kept(tmp_path, other) is None


def test_a_fingerprint_that_differs_behind_the_name_is_refused(tmp_path: Path) -> None:
    write_kept(tmp_path, IDENTITY, SUMS)
    other = replace(IDENTITY, model="a" * 60 + "dddd")
    assert other.folder(tmp_path) == IDENTITY.folder(tmp_path)
    with pytest.raises(InputError, match="something else \\(model is"):
        read_kept(tmp_path, other)


@pytest.mark.parametrize("how", ["torn", "short", "infinite", "no manifest", "other version"])
def test_what_is_damaged_is_refused(tmp_path: Path, how: str) -> None:
    sums = np.array([np.inf, 0, 0], dtype=np.float32) if how == "infinite" else SUMS
    identity = replace(IDENTITY, count=2) if how == "short" else IDENTITY
    write_kept(tmp_path, identity, sums[: identity.count])
    folder = IDENTITY.folder(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    if how == "torn":
        whole = (folder / "sums.safetensors").read_bytes()
        (folder / "sums.safetensors").write_bytes(whole[:-4])
    elif how == "short":
        (folder / "manifest.json").write_text(json.dumps({**manifest, "count": 3}))
    elif how == "no manifest":
        (folder / "manifest.json").unlink()
    elif how == "other version":
        (folder / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(InputError, match="remove the folder") as refused:
        read_kept(tmp_path, IDENTITY)
    assert str(folder) in str(refused.value)
