"""Log-probabilities of a reference that are computed once and kept: one folder a model, set and precision."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from colossal_llama2.errors import InputError
from colossal_llama2.outputs import whole_directory

_VERSION = 1
_SUMS, _MANIFEST, _TENSOR = "sums.safetensors", "manifest.json", "sums"
_DIGITS = 12  # of each fingerprint in the folder's name; the manifest has all


@dataclass(frozen=True)
class KeptIdentity:
    """What kept numbers are of.

    Attributes:
        model: fingerprint of the reference.
        data: fingerprint of the set.
        sequences: which sequences of it.
        precision: what the model computed in.
        count: how many sequences.
    """

    model: str
    data: str
    sequences: str
    precision: str
    count: int

    def folder(self, home: Path) -> Path:
        """Return where they lie."""
        return home / f"{self.model[:_DIGITS]}-{self.data[:_DIGITS]}-{self.sequences}-{self.precision}"


def read_kept(home: Path, identity: KeptIdentity) -> npt.NDArray[np.float32] | None:
    """Read kept numbers.

    Args:
        home: folder of all that are kept.
        identity: which are wanted.

    Returns:
        [count] in nats, or None where none were kept.

    Raises:
        InputError: what lies there is damaged, or is of something else.
    """
    folder = identity.folder(home)
    if not folder.exists():
        return None
    remedy = "remove the folder, and it is computed again"
    try:
        manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        sums: npt.NDArray[np.float32] = load_file(folder / _SUMS)[_TENSOR]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"holds no whole log-probabilities ({error})", path=folder, remedy=remedy) from None
    wanted = {"version": _VERSION, **asdict(identity)}
    wrong = [name for name, value in wanted.items() if manifest.get(name) != value]
    if wrong:
        what = f"{wrong[0]} is {manifest.get(wrong[0])}, not {wanted[wrong[0]]}"
        raise InputError(f"holds log-probabilities of something else ({what})", path=folder, remedy=remedy)
    if sums.shape != (identity.count,) or sums.dtype != np.float32 or not np.isfinite(sums).all():
        raise InputError(
            f"does not hold {identity.count} finite numbers in float32", path=folder / _SUMS, remedy=remedy
        )
    return sums


def write_kept(home: Path, identity: KeptIdentity, sums: npt.NDArray[np.float32]) -> None:
    """Write numbers to keep, whole or not at all; for one rank alone.

    Args:
        home: folder of all that are kept.
        identity: what they are of.
        sums: [count] in nats.
    """
    assert sums.shape == (identity.count,)
    with whole_directory(identity.folder(home)) as work:
        save_file({_TENSOR: np.ascontiguousarray(sums, dtype=np.float32)}, work / _SUMS)
        manifest = {"version": _VERSION, **asdict(identity)}
        (work / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
