"""Sessions whose state lies in another session's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from colossal_llama2.engine.session import Session


@dataclass(frozen=True)
class Companion:
    """A session whose state lies in another one's checkpoints: PPO's critic in the policy's.

    Attributes:
        session: the boosted model.
        model_files_dir: model folder whose configuration and tokenizer go beside its weights.
        changed_files: texts of small files that go there in the place of the folder's own.
    """

    session: Session
    model_files_dir: Path
    changed_files: Mapping[str, str] = field(default_factory=dict)
