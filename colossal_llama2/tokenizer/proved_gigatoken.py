"""gigatoken for a tokenizer for which it is proved equal to the reference, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from colossal_llama2 import cli
from colossal_llama2.tokenizer.encoder import Encoder
from colossal_llama2.tokenizer.gigatoken_encoder import GigatokenEncoder, can_use_threads, missing_package
from colossal_llama2.tokenizer.gigatoken_model import GigatokenModel, UnfitError, pieces_and_merges
from colossal_llama2.tokenizer.proof import Verdict, proof_key, prove, recall, remember
from colossal_llama2.tokenizer.proof_texts import large_texts, proof_texts


class UnprovedError(UnfitError):
    """Nothing is known against gigatoken, but the proof has not been made."""


def load_gigatoken(
    write: Callable[[], GigatokenModel],
    reference: Encoder,
    identity: bytes,
    num_threads: int,
    proof: str | None,
    may_prove: bool = True,
) -> GigatokenEncoder:
    """Load gigatoken and prove it, unless that was done before.

    Args:
        write: writes the tokenizer for gigatoken.
        reference: what it must be equal to.
        identity: describes the reference completely.
        num_threads: see `GigatokenEncoder`.
        proof: the proof that another process has made, see `Encoder.proof`.
        may_prove: make the proof if need be, which takes some seconds.

    Raises:
        UnfitError: gigatoken is not installed, cannot read the tokenizer, or gives other ids.
        UnprovedError: there is no proof yet and none was to be made.
    """
    missing = missing_package()
    if missing is not None:
        raise UnfitError(f"{missing} is not installed")
    model = write()
    key = proof_key(
        [model.content.encode(), repr(model.aside).encode(), reference.kind.encode(), identity],
        ["gigatoken", "awkward", reference.kind],
    )
    verdict = Verdict(0, None) if proof == key else recall(key)
    if verdict is None and not may_prove:
        raise UnprovedError("not proved equal yet")
    encoder = GigatokenEncoder(model, reference, num_threads, key)
    if verdict is None:
        verdict = _prove(model, reference, key)
        if can_use_threads():  # else half of the proof was not made
            remember(key, verdict)
    if verdict.difference is not None:
        raise UnfitError(f"other ids for {verdict.difference}")
    return encoder


@lru_cache(maxsize=64)
def say_fallback(tokenizer_dir: Path, instead: str, reason: str) -> None:
    """Say why a corpus is encoded more slowly than could be; once a process."""
    cli.warn(f"{tokenizer_dir}: encoding with {instead}, not with gigatoken: {reason}")


def _prove(model: GigatokenModel, reference: Encoder, key: str) -> Verdict:
    """Compare on texts made for this vocabulary; on large ones by several threads too, which take another way."""
    pieces, merges = pieces_and_merges(model)
    alone, together = (GigatokenEncoder(model, reference, threads, key) for threads in (1, 2))
    verdict = prove(reference, [alone], proof_texts(pieces, merges, model.markers))
    if verdict.difference is not None:
        return verdict
    large = prove(reference, [alone, together], large_texts(pieces))
    return Verdict(verdict.texts + large.texts, large.difference)
