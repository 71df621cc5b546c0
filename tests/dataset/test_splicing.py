"""Splicing: pieces that cover documents, rows that are packed as the textbook packs them."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.dataset.splicing import cut_documents, pack_best_fit


def best_fit_decreasing(lengths: list[int], max_length: int) -> list[int]:
    """Textbook best fit, by looking at every row for every piece: how full the rows become."""
    fills: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [fill for fill in fills if fill + length <= max_length]
        if fitting:
            fills.remove(max(fitting))
        fills.append((max(fitting) if fitting else 0) + length)
    return sorted(fills)


@given(max_length=st.integers(2, 60), data=st.data())
def test_rows_are_those_of_the_textbook(max_length: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, max_length), max_size=120))
    rows = pack_best_fit(np.array(lengths, dtype=np.int64), max_length)
    assert Counter(piece for row in rows for piece in row) == Counter(range(len(lengths)))
    fills = [sum(lengths[piece] for piece in row) for row in rows]
    assert sorted(fills) == best_fit_decreasing(lengths, max_length)
    assert max(fills, default=0) <= max_length
    # No row could have been saved by putting the first piece of a later row into an earlier one ...
    for earlier, fill in enumerate(fills):
        assert all(fill + lengths[row[0]] > max_length for row in rows[earlier + 1 :])
    # ... so that all rows but one are more than half full on average.
    assert (len(rows) - 1) * max_length <= 2 * sum(lengths)


def test_many_short_pieces_fill_rows_nearly_to_the_brim() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 300, size=3000).clip(1, 2048)
    rows = pack_best_fit(lengths, 2048)
    assert len(rows) == -(-int(lengths.sum()) // 2048)


@given(tokens=st.lists(st.integers(1, 70), max_size=30), max_length=st.integers(2, 20))
def test_pieces_cover_every_document_in_order(tokens: list[int], max_length: int) -> None:
    pieces = cut_documents(np.array(tokens, dtype=np.int64), max_length)
    found = list(zip(pieces.documents.tolist(), pieces.starts.tolist(), pieces.lengths.tolist(), strict=True))
    expected = [
        (document, start, min(max_length, length - start))
        for document, length in enumerate(tokens)
        for start in range(0, length, max_length)
    ]
    assert found == expected
