"""The encoder that stands on gigatoken: several times SentencePiece's speed, and used only where proved equal to it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from colossal_llama2.tokenizer.encoder import Again, EncodedTexts, Encoder, Spans, checked_strings, set_pool_size
from colossal_llama2.tokenizer.gigatoken_model import GigatokenModel, UnfitError
from colossal_llama2.tokenizer.seams import TokenWidths

# A byte-level tokenizer of gigatoken 0.10 keeps every word that it has ever met, which takes up to 4 times the bytes of
# the text, without end. After this many bytes they are forgotten, by loading the tokenizer anew (0.2 s for 16,000
# tokens). One with byte fallback forgets after each call.
_BYTES_REMEMBERED: Final = 1 << 26

_process_was_forked = False


def _after_fork() -> None:
    global _process_was_forked  # noqa: PLW0603 (a fork is known to the process, not to an object)
    _process_was_forked = True


os.register_at_fork(after_in_child=_after_fork)


def can_use_threads() -> bool:
    """Tell whether this process may let gigatoken work with several threads."""
    return not _process_was_forked


class GigatokenEncoder(Encoder):
    """gigatoken, with the texts that it would read otherwise kept from it.

    One thread does the work where `num_threads` is 1, and in a forked process, where the threads of a pool made before
    the fork do not exist and would be waited for for ever. Otherwise gigatoken's own pool does, which has as many
    threads as the first encoder of the process asked for (``RAYON_NUM_THREADS``, read once).
    """

    kind = "gigatoken"

    def __init__(self, model: GigatokenModel, reference: Encoder, num_threads: int, proof: str) -> None:
        """Load the tokenizer.

        Args:
            model: what gigatoken reads.
            reference: encodes what gigatoken must not be given, and knows the widths of tokens.
            num_threads: threads that one call may use.
            proof: see `Encoder.proof`.

        Raises:
            UnfitError: gigatoken is not installed, or cannot read the model.
        """
        super().__init__(reference.vocabulary, reference.again)
        self.reference = reference
        self.proof = proof
        self._model = model
        self._num_threads = num_threads
        self._bytes_met = 0
        if num_threads > 1:
            set_pool_size(num_threads)
        self._tokenizer = _load(model)

    def __reduce__(self) -> Again:
        """Pickle as the call that loads it anew; the proof goes along and holds where the versions are the same."""
        function, arguments = self.again
        return function, (*arguments, "auto", self.proof)

    def encode_arrow(self, texts: pa.Array) -> EncodedTexts:
        """Encode an Arrow array of strings without making Python strings of them; see `Encoder.encode_arrow`."""
        return self._encode_strings(checked_strings(texts))

    def _encode(self, texts: Sequence[str]) -> EncodedTexts:
        strings = _strings(texts)
        return replace(self._encode_strings(strings), sizes=np.diff(_offsets_of(strings)))

    def _encode_strings(self, strings: pa.LargeStringArray) -> EncodedTexts:
        if self._model.aside is None:
            return self._run(strings)
        aside = pc.match_substring_regex(strings, self._model.aside)
        if not pc.any(aside).as_py():
            return self._run(strings)
        given = self._run(strings.filter(pc.invert(aside)))
        kept = self.reference.encode(strings.filter(aside).to_pylist())
        return _woven(given, kept, aside.to_numpy(zero_copy_only=False))

    def _run(self, strings: pa.LargeStringArray) -> EncodedTexts:
        """Give gigatoken the buffers of an array; its bytes must be UTF-8, or it crashes."""
        import awkward

        if not len(strings):
            return EncodedTexts(np.zeros(0, dtype=np.int32), np.zeros(1, dtype=np.int64))
        _, _, data = strings.buffers()
        offsets = _offsets_of(strings)
        content = np.frombuffer(data or b"", dtype=np.uint8)
        self._forget_in_time(int(offsets[-1] - offsets[0]))
        letters = awkward.contents.NumpyArray(content, parameters={"__array__": "char"})
        rows = awkward.contents.ListOffsetArray(
            awkward.index.Index64(offsets), letters, parameters={"__array__": "string"}
        )
        parallel = self._num_threads > 1 and can_use_threads()
        found = self._tokenizer.encode_batch(awkward.Array(rows), parallel=parallel).layout
        ids = np.asarray(found.content.data).view(np.int32)
        ends_of_texts = np.asarray(found.offsets.data)
        assert len(ends_of_texts) == len(strings) + 1
        assert ends_of_texts[0] == 0
        assert ends_of_texts[-1] == len(ids)
        return EncodedTexts(ids, ends_of_texts)

    def _forget_in_time(self, num_bytes: int) -> None:
        if self._model.has_byte_fallback:
            return
        if self._bytes_met and self._bytes_met + num_bytes > _BYTES_REMEMBERED:
            self._tokenizer = _load(self._model)
            self._bytes_met = 0
        self._bytes_met += num_bytes

    @property
    def _widths(self) -> TokenWidths | None:
        return self.reference._widths

    def _spans(self, text: str) -> Spans:
        return self.reference._spans(text)


def missing_package() -> str | None:
    """Return the name of a package that gigatoken's encoder needs and that is not installed, if there is one."""
    for name in ("gigatoken", "awkward"):
        try:
            version(name)
        except PackageNotFoundError:
            return name
    return None


def _load(model: GigatokenModel) -> Any:
    try:
        from gigatoken.gigatoken_rs import load_hf_json
    except ImportError as error:
        raise UnfitError(f"gigatoken is not installed ({error})") from None
    try:
        return load_hf_json(model.content)
    except (ValueError, RuntimeError) as error:
        raise UnfitError(f"gigatoken cannot read it ({str(error).splitlines()[0]})") from None


def _offsets_of(strings: pa.LargeStringArray) -> npt.NDArray[np.int64]:
    """Return where each text begins in the array's bytes, and where the last one ends."""
    ends = strings.buffers()[1]
    offsets: npt.NDArray[np.int64] = np.frombuffer(ends, dtype=np.int64)
    return offsets[strings.offset : strings.offset + len(strings) + 1]


def _strings(texts: Sequence[str]) -> pa.LargeStringArray:
    """Lay texts out behind one another; `pa.array` does too, and imports pandas for it, which takes half a second."""
    parts = [text.encode() for text in texts]
    offsets = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)), out=offsets[1:])
    return pa.LargeStringArray.from_buffers(len(parts), pa.py_buffer(offsets), pa.py_buffer(b"".join(parts)))


def _woven(given: EncodedTexts, kept: EncodedTexts, aside: npt.NDArray[np.bool_]) -> EncodedTexts:
    """Put texts that were encoded apart back into their order.

    Args:
        given: the texts where `aside` is False.
        kept: the texts where `aside` is True.
        aside: which text is among which.
    """
    lengths = np.empty(len(aside), dtype=np.int64)
    lengths[~aside], lengths[aside] = np.diff(given.offsets), np.diff(kept.offsets)
    offsets = np.zeros(len(aside) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    token_aside = np.repeat(aside, lengths)
    ids = np.empty(int(offsets[-1]), dtype=np.int32)
    ids[~token_aside], ids[token_aside] = given.ids, kept.ids
    return EncodedTexts(ids, offsets)
