"""What tells one model from another for certain: a hash of every byte of its weights and its configuration."""

from __future__ import annotations

import hashlib
from pathlib import Path

from colossal_llama2.model.adapter_files import CONFIG_FILE as ADAPTER_CONFIG
from colossal_llama2.model.adapter_files import WEIGHTS_FILE
from colossal_llama2.model.belonging import CONFIG_FILE
from colossal_llama2.model.weights import find_weights


def model_fingerprint(model_dir: Path, adapter_dir: Path | None = None) -> str:
    """Return the sha256 (hex) of a model folder's weight files and ``config.json``, and of an adapter on top of it.

    Every byte is read, about a gigabyte a second: samples (`adapter_files.weights_fingerprint`) would not see that a
    few rows of an embedding were trained.

    Args:
        model_dir: the model.
        adapter_dir: an adapter on it, or None.

    Raises:
        InputError: there are no weights.
    """
    paths = [model_dir / CONFIG_FILE, *find_weights(model_dir).paths]
    if adapter_dir is not None:
        paths += [adapter_dir / ADAPTER_CONFIG, adapter_dir / WEIGHTS_FILE]
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
