"""Snippets of text that hold new tokens, in new and in old tokens, chosen so that every token gets its turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import read_jsonl, string_field
from colossal_llama2.tokenizer.encoder import Encoder
from colossal_llama2.tokenizer.extension import Extension

Ids = npt.NDArray[np.int32]

_TEXTS_AT_ONCE = 256
_CHARACTERS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Snippets:
    """Snippets in new tokens, as they were read.

    Attributes:
        rows: the snippets, without bos.
        levels: [len(rows)] int64, how often the rarest new token of each stood in those read before it: 0 for one that
            shows a token for the first time.
        occurrences: [N] int64, how often each new token stands in them.
        texts: documents read.
    """

    rows: list[Ids]
    levels: npt.NDArray[np.int64]
    occurrences: npt.NDArray[np.int64]
    texts: int


class OldTokens:
    """Writes a sequence of new tokens in old ones: each new token as its base tokens, in place.

    What comes out is how the base's own tokenizer cuts the same text wherever it does not join across the border of a
    new token; that the borders stand in both is what lets hidden states be compared.
    """

    def __init__(self, extension: Extension) -> None:
        """Lay out the base tokens of every token of the larger tokenizer."""
        self._num_base = extension.num_base
        cuts = extension.base_tokens
        self._ids = np.concatenate([np.arange(extension.num_base, dtype=np.int32), cuts.ids])
        lengths = np.concatenate([np.ones(extension.num_base, dtype=np.int64), np.diff(cuts.offsets)])
        self._starts = np.cumsum(lengths) - lengths
        self.lengths = lengths

    def of(self, ids: Ids) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Return the old tokens of a sequence, and for each token of it the place of its last old token."""
        lengths = self.lengths[ids]
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
        return self._ids[np.repeat(self._starts[ids], lengths) + places], ends - 1


def choose_snippets(
    files: Sequence[Path], encoder: Encoder, extension: Extension, longest: int, enough: int
) -> Snippets:
    """Cut texts into snippets and keep those that are needed; reading ends when every token has had enough of them.

    Args:
        files: jsonl of pretraining records, or plain text.
        encoder: of the larger tokenizer.
        extension: what it has beyond the smaller one.
        longest: most old tokens of a snippet.
        enough: a snippet is kept if it holds a new token that stands in fewer than this many kept before.

    Raises:
        InputError: a file cannot be read, or no new token stands in any of them.
    """
    old = OldTokens(extension)
    count = np.zeros(extension.num_tokens - extension.num_base, dtype=np.int64)
    rows: list[Ids] = []
    levels: list[int] = []
    texts = 0
    for batch in _batches(files):
        encoded = encoder.encode(batch)
        texts += len(batch)
        for begin, end in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True):
            for row in _windows(encoded.ids[begin:end], old, longest):
                new = row[row >= extension.num_base] - extension.num_base
                level = int(count[new].min()) if len(new) else enough
                if level < enough:
                    rows.append(row.copy())
                    levels.append(level)
                    np.add.at(count, new, 1)
        if len(count) and count.min() >= enough:
            break
    if not rows:
        raise InputError(
            "holds none of the new tokens", path=files[0], remedy="give text of the language they were added for"
        )
    return Snippets(rows, np.array(levels), count, texts)


def in_batches(snippets: Snippets, steps: int, batch_size: int, seed: int) -> Iterator[list[Ids]]:
    """Yield the batches of some steps, shuffled anew whenever all have been used.

    If not all snippets can be used, those are that show a token for the first time, then for the second ...; of a level
    that does not fit as a whole, some by chance.
    """
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(snippets.rows))
    chosen = order[np.argsort(snippets.levels[order], kind="stable")][: steps * batch_size]
    queue: list[int] = []
    for _ in range(steps):
        while len(queue) < batch_size:
            queue += draw.permutation(chosen).tolist()
        yield [snippets.rows[index] for index in queue[:batch_size]]
        del queue[:batch_size]


def _windows(ids: Ids, old: OldTokens, longest: int) -> Iterator[Ids]:
    """Cut a text after as many tokens as fit; a token that alone is too long stands in no snippet."""
    ends = np.cumsum(old.lengths[ids])
    begin = 0
    while begin < len(ids):
        before = ends[begin - 1] if begin else 0
        end = int(np.searchsorted(ends, before + longest, side="right"))
        if end > begin:
            yield ids[begin:end]
        begin = max(end, begin + 1)


def _batches(files: Sequence[Path]) -> Iterator[list[str]]:
    batch: list[str] = []
    for path in files:
        for text in _texts(path):
            batch.append(text)
            if len(batch) == _TEXTS_AT_ONCE:
                yield batch
                batch = []
    if batch:
        yield batch


def _texts(path: Path) -> Iterator[str]:
    """Yield the texts of a jsonl file's records, or stretches of a plain text file that end with a line."""
    if path.suffix == ".jsonl":
        for line, record in read_jsonl(path):
            yield string_field(record, "source", path, line, default="") + string_field(record, "target", path, line)
        return
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines, size = [], 0
            for one in file:
                lines.append(one)
                size += len(one)
                if size >= _CHARACTERS_AT_ONCE:
                    yield "".join(lines)
                    lines, size = [], 0
            if lines:
                yield "".join(lines)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8", path=path, remedy="convert the file to UTF-8") from None
