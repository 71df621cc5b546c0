"""Command: expand a tokenizer by the pieces of a list."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run by its path: this folder stands first on sys.path, the package is two above it
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import refuse_existing, whole_directory
from colossal_llama2.tokenizer import loading
from colossal_llama2.tokenizer.compression_rate import count_longer, measure_compression, read_sample
from colossal_llama2.tokenizer.documents import Documents
from colossal_llama2.tokenizer.expander import Attempt, Expander, MergeOrder, UnreachablePolicy
from colossal_llama2.tokenizer.expansion import Expansion, SampleCounts
from colossal_llama2.tokenizer.folder import EXPANSION_FILE, JSON_FILE, MODEL_FILE, TokenizerFolder, read_folder
from colossal_llama2.tokenizer.old_text import Kept, OnChange, keep_old_text, read_old_text
from colossal_llama2.tokenizer.piece_expander import PieceExpander
from colossal_llama2.tokenizer.piece_list import RefusedPiece, WantedPiece, read_piece_list

_NAMED = 20
_MANY = 100


@dataclass(frozen=True)
class Settings:
    """Expand a SentencePiece BPE tokenizer by a list of pieces; its own ids, merges and settings stay as they are.

    Every piece that is added comes out of its own text as one token.
    """

    source_tokenizer_dir: Path
    """Folder of the tokenizer to expand; tokenizer.model alone is enough."""

    target_tokenizer_dir: Path
    """Folder to write the expanded tokenizer to."""

    expand_tokens_file: Path
    """Piece list: jsonl, one {"piece": "..."} a line."""

    sample_file: Path | None = None
    """Text (or jsonl with source and target, or text) on which tokens per character are measured before and after."""

    unreachable: UnreachablePolicy = "close"
    """What to do about pieces that BPE cannot build: close adds the fewest pieces in between that they need, drop
    leaves them out, error refuses the list."""

    keep_identical: tuple[Path, ...] = ()
    """Text in the old language (files or folders: jsonl with source and target, or text; anything else line by line)
    that must be cut into the same tokens as before."""

    on_change: OnChange = "drop"
    """What to do about pieces that change such text: drop leaves them out, error refuses the list, allow keeps them
    and counts the documents they change."""

    merge_order: MergeOrder = "auto"
    """Order in which new pieces are merged: length (shorter first), list (as they stand in the list), or auto: list
    where every piece of it can be joined from two that stand before it, as in a mined list, else length."""

    overwrite: bool = False
    """Replace the target folder if it exists."""


def main(settings: Settings) -> None:
    """Expand the tokenizer, prove that its readers agree on it and that old text is kept, and write its account."""
    source = _read_source(settings)
    expander = _expander(source)
    wanted = read_piece_list(settings.expand_tokens_file)
    sample = read_sample(settings.sample_file) if settings.sample_file else None
    documents = Documents(settings.keep_identical) if settings.keep_identical else None
    pieces = expander.sort(wanted)
    _require_pieces(pieces.new, settings)
    ordered, merge_order = expander.in_order(pieces.new, settings.merge_order)
    attempt, kept = _build(expander, ordered, documents, settings)
    left_out = _left_out(attempt, kept, wanted, settings)
    _require_pieces(attempt.added, settings)
    with whole_directory(settings.target_tokenizer_dir, settings.overwrite) as work:
        compared = expander.write(attempt, work)
        expansion = Expansion(
            base_tokens=expander.num_base,
            sorted_pieces=pieces,
            added=attempt.added,
            intermediates=attempt.intermediates,
            left_out=left_out,
            raised=attempt.raised,
            merge_order=merge_order,
            policy=_policy(settings),
            source_fingerprint=loading.tokenizer_fingerprint(source.path),
            target_fingerprint=loading.tokenizer_fingerprint(work),
            texts_compared=compared,
            kept=kept,
            sample=_measure(expander, attempt, sample) if sample else None,
        )
        expansion.write(work / EXPANSION_FILE)
        (work / "settings.yaml").write_text(cli.as_yaml(settings), encoding="utf-8")
    for line in expansion.lines():
        cli.say(line)
    _say_what_is_odd(attempt, documents)


def _expander(source: TokenizerFolder) -> Expander:
    if source.model_file is None:
        raise InputError(
            f"holds {JSON_FILE} alone; only SentencePiece BPE tokenizers can be expanded",
            path=source.path,
            remedy=f"give a tokenizer with a {MODEL_FILE}",
        )
    return PieceExpander(source)


def _build(
    expander: Expander, ordered: Sequence[str], documents: Documents | None, settings: Settings
) -> tuple[Attempt, Kept | None]:
    """Build the expansion, held against the old text if there is any.

    Raises:
        InputError: `--on_change error` or `--unreachable error`, and there is something to refuse.
    """

    def build(pieces: Sequence[str], allows: Callable[[str], bool]) -> Attempt:
        return expander.build(pieces, settings.unreachable, allows)

    if documents is None:
        return build(ordered, lambda text: True), None
    old = read_old_text(documents, map(expander.as_text, ordered))
    kept = keep_old_text(ordered, expander.as_text, build, expander.before, (old, documents), settings.on_change)
    return kept.attempt, kept


def _left_out(
    attempt: Attempt, kept: Kept | None, wanted: Sequence[WantedPiece], settings: Settings
) -> tuple[RefusedPiece, ...]:
    """List the pieces left out with their lines.

    Raises:
        InputError: `--unreachable error`, and some cannot be built.
    """
    if settings.unreachable == "error" and attempt.left_out:
        shown = ", ".join(repr(item.piece) for item in attempt.left_out[:_NAMED])
        raise InputError(
            f"{len(attempt.left_out)} pieces cannot be built by merging: {shown}"
            f"{', ...' if len(attempt.left_out) > _NAMED else ''}",
            path=settings.expand_tokens_file,
            remedy="pass --unreachable close to add what they need, or drop to leave them out",
        )
    lines = {item.piece: item.line for item in reversed(wanted)}
    items = attempt.left_out if kept is None or settings.on_change == "allow" else kept.changing + attempt.left_out
    refused = (RefusedPiece(item.piece, lines[item.piece], item.reason) for item in items)
    return tuple(sorted(refused, key=lambda item: item.line))


def _measure(expander: Expander, attempt: Attempt, sample: Sequence[str]) -> SampleCounts:
    before, after = expander.before, attempt.encoder
    longer = count_longer(before, after, sample)
    return SampleCounts(measure_compression(before, sample), measure_compression(after, sample), longer)


def _policy(settings: Settings) -> dict[str, str]:
    policy: dict[str, str] = {"unreachable": settings.unreachable, "merge_order": settings.merge_order}
    return {**policy, "on_change": settings.on_change} if settings.keep_identical else policy


def _require_pieces(pieces: Sequence[str], settings: Settings) -> None:
    if not pieces:
        raise InputError("holds no piece that could be added", path=settings.expand_tokens_file)


def _say_what_is_odd(attempt: Attempt, documents: Documents | None) -> None:
    if len(attempt.intermediates) > max(_MANY, len(attempt.added) // 2):
        cli.warn(
            f"{len(attempt.intermediates)} pieces in between for {len(attempt.added)} wanted ones, and each is a row "
            "of the embedding and of the output matrix; --unreachable drop leaves out what needs them"
        )
    if documents is not None and documents.left_aside:
        first = documents.left_aside[0].name
        cli.warn(f"{len(documents.left_aside)} files of --keep_identical are neither .jsonl nor .txt, such as {first}")


def _read_source(settings: Settings) -> TokenizerFolder:
    """Read the source folder and refuse what cannot be expanded, before any work is done."""
    source = read_folder(settings.source_tokenizer_dir)
    target = settings.target_tokenizer_dir.resolve()
    if target == source.path.resolve() or target in source.path.resolve().parents:
        raise InputError("the target would replace the source", path=target, remedy="choose another target folder")
    if (settings.target_tokenizer_dir / "config.json").exists():
        raise InputError(
            "holds a model, which would be replaced too", path=target, remedy="choose another target folder"
        )
    refuse_existing(settings.target_tokenizer_dir, settings.overwrite)
    return source


if __name__ == "__main__":
    cli.run(Settings, main)
