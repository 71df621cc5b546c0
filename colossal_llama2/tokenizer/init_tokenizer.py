"""Command: expand a SentencePiece BPE tokenizer by the pieces of a list."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run by its path: this folder stands first on sys.path, the package is two above it
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import refuse_existing, whole_directory
from colossal_llama2.tokenizer import loading, parity
from colossal_llama2.tokenizer.compression_rate import measure_compression, read_sample
from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.expansion import Expansion
from colossal_llama2.tokenizer.folder import (
    EXPANSION_FILE,
    JSON_FILE,
    MODEL_FILE,
    MarkerToken,
    TokenizerFolder,
    read_folder,
)
from colossal_llama2.tokenizer.piece_list import read_piece_list, sort_pieces
from colossal_llama2.tokenizer.piece_model import PieceModel, require_bpe
from colossal_llama2.tokenizer.reachability import unreachable_pieces
from colossal_llama2.tokenizer.writing import write_tokenizer


@dataclass(frozen=True)
class Settings:
    """Expand a SentencePiece BPE tokenizer by a list of pieces; its own ids, merges and settings stay as they are."""

    source_tokenizer_dir: Path
    """Folder of the tokenizer to expand; tokenizer.model alone is enough."""

    target_tokenizer_dir: Path
    """Folder to write the expanded tokenizer to."""

    expand_tokens_file: Path
    """Piece list: jsonl, one {"piece": "..."} a line."""

    sample_file: Path | None = None
    """Text (or jsonl with source and target, or text) on which tokens per character are measured before and after."""

    overwrite: bool = False
    """Replace the target folder if it exists."""


def main(settings: Settings) -> None:
    """Expand the tokenizer, prove that both readers agree on it, and write it with its account."""
    source = _read_source(settings)
    model = loading.read_model(source)
    require_bpe(model, source.path)
    wanted = read_piece_list(settings.expand_tokens_file)
    sample = read_sample(settings.sample_file) if settings.sample_file else None
    beyond = loading.tokens_beyond(source, model)
    pieces = sort_pieces(wanted, model, source.markers | {token.content for token in beyond})
    if not pieces.new:
        raise InputError("holds no piece that could be added", path=settings.expand_tokens_file)
    _refuse_gaps(source, model, beyond)
    expanded = expand_model(model, pieces.new, beyond)
    num_base = len(model.pieces) + len(beyond)
    new_ids = range(num_base, len(expanded.pieces))
    with whole_directory(settings.target_tokenizer_dir, settings.overwrite) as work:
        write_tokenizer(
            work, source, expanded, loading.build_fast(source, expanded), loading.special_tokens(source, model)
        )
        expansion = Expansion(
            base_tokens=num_base,
            sorted_pieces=pieces,
            unreachable=tuple(unreachable_pieces(expanded, new_ids)),
            source_fingerprint=loading.tokenizer_fingerprint(source.path),
            target_fingerprint=loading.tokenizer_fingerprint(work),
            texts_compared=_prove_parity(work, new_ids),
        )
        if sample is not None:
            before, after = (measure_compression(loading.load_encoder(path), sample) for path in (source.path, work))
            expansion = dataclasses.replace(expansion, before=before, after=after)
        expansion.write(work / EXPANSION_FILE)
        (work / "settings.yaml").write_text(cli.as_yaml(settings), encoding="utf-8")
    for line in expansion.lines():
        cli.say(line)


def _read_source(settings: Settings) -> TokenizerFolder:
    """Read the source folder and refuse what cannot be expanded, before any work is done."""
    source = read_folder(settings.source_tokenizer_dir)
    if source.model_file is None:
        raise InputError(
            f"holds {JSON_FILE} alone; only SentencePiece BPE tokenizers can be expanded",
            path=source.path,
            remedy=f"give a tokenizer with a {MODEL_FILE}",
        )
    target = settings.target_tokenizer_dir.resolve()
    if target == source.path.resolve() or target in source.path.resolve().parents:
        raise InputError("the target would replace the source", path=target, remedy="choose another target folder")
    if (settings.target_tokenizer_dir / "config.json").exists():
        raise InputError(
            "holds a model, which would be replaced too", path=target, remedy="choose another target folder"
        )
    refuse_existing(settings.target_tokenizer_dir, settings.overwrite)
    return source


def _refuse_gaps(source: TokenizerFolder, model: PieceModel, beyond: Sequence[MarkerToken]) -> None:
    """New pieces come after the source's added tokens, which must follow the model's pieces without a hole."""
    known = {entry.piece for entry in model.pieces}
    for expected, token in enumerate(beyond, len(model.pieces)):
        if token.id != expected or token.content in known:
            raise InputError(
                f"the added token {token.content!r} has id {token.id}, where {expected} or a piece of its own would be",
                path=source.path,
                remedy="number the added tokens behind the pieces without a gap or a repetition",
            )


def _prove_parity(folder: Path, new_ids: Sequence[int]) -> int:
    """Hold what was written against SentencePiece, as `tokenizers` and as transformers read it.

    Returns the number of texts compared.

    Raises:
        InputError: they differ on a text, which is quoted.
    """
    written = read_folder(folder)
    model = loading.read_model(written)
    processor = SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
    texts = parity.adversarial_texts(model, new_ids)
    fast = Tokenizer.from_file(str(folder / JSON_FILE))
    mismatches, compared = parity.find_mismatches(processor, fast, texts)
    around = [written.special_tokens.get(f"{name}_token") if written.adds(name) else None for name in ("bos", "eos")]
    before, after = ([] if token is None else [int(fast.token_to_id(token) or 0)] for token in around)
    mismatches += parity.find_transformers_mismatches(processor, folder, before, after)
    if mismatches:
        first = mismatches[0]
        raise InputError(
            f"the fast tokenizer of this expansion gives {list(first.actual)[:20]} for {first.text[:60]!r}, "
            f"SentencePiece {list(first.expected)[:20]}",
            remedy="take the pieces of that text out of the list, or start from another base",
        )
    return compared


if __name__ == "__main__":
    cli.run(Settings, main)
