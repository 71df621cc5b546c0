"""From a SentencePiece BPE model to a `tokenizers` tokenizer that gives the same ids.

transformers' own conversion ranks merges by id instead of score and prefixes text differently; ours repeats what
SentencePiece does, and refuses what it cannot repeat exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.folder import MarkerToken
from colossal_llama2.tokenizer.piece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE_MARK,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    PieceModel,
    has_identity_normalizer,
    piece_ids,
    require_bpe,
)


def to_fast(model: PieceModel, added: Iterable[MarkerToken], path: Path) -> Tokenizer:
    """Build the `tokenizers` tokenizer of a SentencePiece BPE model.

    Args:
        model: the model.
        added: the source's added tokens; those beyond the model's pieces take the ids that follow, in order.
        path: the file or folder the model came from, for complaints.

    Raises:
        InputError: the model does something that `tokenizers` cannot repeat exactly.
    """
    require_repeatable(model, path)
    ids = piece_ids(model)
    unknown = next(entry.piece for entry in model.pieces if entry.type == UNKNOWN)
    fast = Tokenizer(
        BPE(
            vocab=ids,
            merges=ranked_merges(model),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=bool(model.trainer_spec.byte_fallback),
        )
    )
    steps = _normalizers(model)
    if steps:
        fast.normalizer = normalizers.Sequence(steps)
    fast.decoder = _decoder(model)
    _add_tokens(fast, model, list(added), path)
    return fast


def ranked_merges(model: PieceModel) -> list[tuple[str, str]]:
    """List every merge that SentencePiece would make, the one it would make first first.

    SentencePiece joins any two neighbours whose concatenation is a piece, the highest score first. `tokenizers` joins
    the pairs it was given, in their order. So: every cut of every normal piece into two normal pieces, by falling
    score, then id, then position of the cut.
    """
    scores = {entry.piece: entry.score for entry in model.pieces if entry.type == NORMAL}
    ordered = sorted(
        (-entry.score, index, entry.piece)
        for index, entry in enumerate(model.pieces)
        if entry.type == NORMAL and len(entry.piece) > 1
    )
    # Written out, not over `halves`: this is done at every start, and a vocabulary has 200,000 cuts.
    return [
        (piece[:cut], piece[cut:])
        for _, _, piece in ordered
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def set_boundaries(fast: Tokenizer, bos: str | None, eos: str | None) -> None:
    """Make `fast` put `bos` before and `eos` after a text, where they are given."""
    around = [token for token in (bos, eos) if token]
    if not around:
        return
    single = " ".join([*([bos] if bos else []), "$A", *([eos] if eos else [])])
    pair = f"{single} " + " ".join([*([f"{bos}:1"] if bos else []), "$B:1", *([f"{eos}:1"] if eos else [])])
    tokens = [(token, fast.token_to_id(token)) for token in around]
    fast.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=tokens)


def tied_pieces(model: PieceModel) -> list[str]:
    """Return the pieces whose score another piece has too, runs of nothing but space marks aside.

    Of equal scores SentencePiece takes the leftmost in the text, `tokenizers` always the same one. Runs of spaces
    (all -1e9 in Llama-2) compete with runs of spaces only, where both come to the same runs.
    """
    contested = [
        entry
        for entry in model.pieces
        if entry.type == NORMAL and len(entry.piece) > 1 and entry.piece.strip(SPACE_MARK)
    ]
    counts = Counter(entry.score for entry in contested)
    return [entry.piece for entry in contested if counts[entry.score] > 1]


def require_repeatable(model: PieceModel, path: Path) -> None:
    """Refuse a model whose ids no other library gives.

    Raises:
        InputError: the model does something that only SentencePiece does; the complaint lists it all.
    """
    require_bpe(model, path)
    reasons = []
    if not has_identity_normalizer(model):
        reasons.append(f"normalises text ({model.normalizer_spec.name or 'by rules of its own'})")
    if model.trainer_spec.treat_whitespace_as_suffix:
        reasons.append("puts the space mark behind words")
    if any(entry.type == UNUSED for entry in model.pieces):
        reasons.append("holds unused pieces")
    if not any(entry.type == UNKNOWN for entry in model.pieces):
        reasons.append("has no unknown piece")
    if model.normalizer_spec.add_dummy_prefix and any(entry.type == USER_DEFINED for entry in model.pieces):
        reasons.append("has user-defined pieces beside a dummy prefix")
    tied = tied_pieces(model)
    if tied:
        reasons.append(f"gives {len(tied)} pieces scores that are not unique, such as {tied[0]!r}")
    if reasons:
        raise InputError(
            f"this SentencePiece model {' and '.join(reasons)}, which no fast tokenizer repeats exactly",
            path=path,
            remedy="start from a model without that",
        )


def _normalizers(model: PieceModel) -> list[normalizers.Normalizer]:
    spec = model.normalizer_spec
    mark = SPACE_MARK if spec.escape_whitespaces else " "
    steps: list[normalizers.Normalizer] = []
    if spec.remove_extra_whitespaces:
        # SentencePiece strips what looks like a space at the end after escaping, so a literal space mark goes too.
        steps += [
            normalizers.Replace(Regex(r"\A +"), ""),
            normalizers.Replace(Regex(rf"[ {mark}]+\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(mark))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", SPACE_MARK))
    return steps


def _decoder(model: PieceModel) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE_MARK, " ")]
    if any(entry.type == BYTE for entry in model.pieces):
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if model.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _add_tokens(fast: Tokenizer, model: PieceModel, added: list[MarkerToken], path: Path) -> None:
    """Register control pieces, user-defined pieces and the source's added tokens, each at its own id."""
    markers = {
        index: MarkerToken(
            index, entry.piece, special=entry.type != USER_DEFINED, normalized=entry.type == USER_DEFINED
        )
        for index, entry in enumerate(model.pieces)
        if entry.type in (UNKNOWN, CONTROL, USER_DEFINED)
    }
    for token in added:
        if token.id < len(model.pieces) and model.pieces[token.id].piece != token.content:
            raise InputError(
                f"the settings call token {token.id} {token.content!r}, the model calls it "
                f"{model.pieces[token.id].piece!r}",
                path=path,
                remedy="give a folder whose files belong together",
            )
        markers[token.id] = token
    for index, token in sorted(markers.items()):
        fast.add_tokens(
            [
                AddedToken(
                    token.content,
                    special=token.special,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    single_word=token.single_word,
                    normalized=token.normalized,
                )
            ]
        )
        if fast.token_to_id(token.content) != index:
            raise InputError(
                f"the added token {token.content!r} is to have id {index}, but the next free one is "
                f"{fast.token_to_id(token.content)}",
                path=path,
                remedy="number the added tokens behind the pieces without a gap",
            )
