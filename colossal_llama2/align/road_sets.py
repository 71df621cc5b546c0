"""What is known of sets and tokenizers before they are made: from their files where those are there, else from the
steps that will make them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from colossal_llama2.align.road_records import Found
from colossal_llama2.align.road_steps import Road, Step
from colossal_llama2.dataset.corpus import CORPUS
from colossal_llama2.dataset.ledger import MANIFEST
from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.loading import tokenizer_fingerprint

_TOKENIZER_FLAGS: Final = ("target_tokenizer_path", "tokenizer_dir", "source_tokenizer_dir")


@dataclass(frozen=True)
class Tokenizer:
    """Where ids come from.

    Attributes:
        fingerprint: of the tokenizer, where it is there.
        step: that will make it, where it is not.
        source: what that step expands.
    """

    fingerprint: str = ""
    step: str = ""
    source: Tokenizer | None = None

    def differs(self, other: Tokenizer) -> bool:
        """Tell whether the two are known to give other ids: an expanded tokenizer is not the one it was made of."""
        if self.fingerprint and other.fingerprint:
            return self.fingerprint != other.fingerprint
        if self.step and other.step:
            return self.step != other.step
        made, there = (self, other) if self.step else (other, self)
        return made.source is not None and bool(there.fingerprint) and made.source.fingerprint == there.fingerprint

    def __str__(self) -> str:
        return f"that of step {self.step}" if self.step else f"{self.fingerprint[:12]}..."


@dataclass(frozen=True)
class KnownSet:
    """A prepared set.

    Attributes:
        type: as `prepare_dataset` names it, or ``pretrain``.
        tokenizer: it was or will be encoded with, if known.
        max_length: of its rows, in tokens.
        rows: it has; None as long as it is not there.
        tokens: in them.
    """

    type: str
    tokenizer: Tokenizer | None
    max_length: int
    rows: int | None = None
    tokens: int | None = None


class Known:
    """Answers for one road, as far as it has been gone."""

    def __init__(self, road: Road, found: Mapping[str, Found]) -> None:
        self._road, self._found = road, found

    def maker(self, path: Path) -> Step | None:
        """Return the step that has yet to make what is asked for; None for what lies there, or should."""
        there = path.absolute()
        for step in self._road.steps:
            if there.is_relative_to(step.folder.absolute()):
                return None if self._found[step.name].is_done else step
        return None

    def tokenizer(self, path: Path) -> Tokenizer | None:
        """Return the tokenizer of a folder, None where nothing is known."""
        step = self.maker(path)
        if step is None:
            try:
                return Tokenizer(fingerprint=tokenizer_fingerprint(path))
            except InputError:
                return None  # what is wrong with it is for the step to say that loads it
        if step.kind.name == "init_tokenizer":
            return Tokenizer(step=step.name, source=self.tokenizer(step.settings.source_tokenizer_dir))
        if not step.kind.is_tool:
            return self.tokenizer(step.settings.model.pretrained)
        flag = next((flag for flag in _TOKENIZER_FLAGS if hasattr(step.settings, flag)), None)
        return None if flag is None else self.tokenizer(getattr(step.settings, flag))

    def set(self, path: Path) -> KnownSet | None:
        """Return what is known of a prepared set or a part of one; None for nothing."""
        step = self.maker(path)
        if step is None:
            return read_set(path)
        if "set" not in step.kind.makes:
            return None
        settings = step.settings
        tokenizer = self.tokenizer(settings.tokenizer_dir)
        if step.kind.name == "prepare_dataset":
            return KnownSet(settings.type, tokenizer, settings.max_length)
        return KnownSet(CORPUS, tokenizer, settings.splicing.max_length)


def read_set(path: Path) -> KnownSet | None:
    """Read the ledger of a set, or of the set that a part lies in; None where there is none that can be read."""
    home = path if (path / MANIFEST).is_file() else path.absolute().parent
    try:
        content: dict[str, Any] = json.loads((home / MANIFEST).read_text(encoding="utf-8"))
        parts = [part for part in content["buckets"] if home == path or path.name.endswith(f"-{part['bucket']:05}")]
        return KnownSet(
            type=str(content.get("type", CORPUS)),
            tokenizer=Tokenizer(fingerprint=str(content["tokenizer"]["fingerprint"])),
            max_length=int(content["max_length"]),
            rows=sum(int(part["rows"]) for part in parts),
            tokens=sum(int(part["tokens"]) for part in parts),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the stage that opens it says what is wrong with it
