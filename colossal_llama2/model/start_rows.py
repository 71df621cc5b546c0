"""Embedding and head as a model folder has them, mapped into memory: what training moves them away from."""

from __future__ import annotations

from pathlib import Path

import torch

from colossal_llama2.model.embedding_names import find_embeddings
from colossal_llama2.model.weights import find_weights


def map_token_matrices(model_dir: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Map the input embedding and the output head, each [rows, width], as they are stored; tied ones are the same.

    Raises:
        InputError: the folder lacks one of them.
    """
    files = find_weights(model_dir)
    locations = files.locations()
    names = find_embeddings(model_dir, locations)
    stored = [names.inputs or names.output, names.output or names.inputs]
    mapped = [files.map(locations[name][0], name) for name in stored if name is not None]
    return mapped[0], mapped[1]
