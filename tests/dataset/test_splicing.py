"""Splicing: pieces that cover documents, rows that are packed as the textbook packs them or lie end to end."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.dataset.splicing import Cutting, Pieces, Rows, cut_documents, pack_best_fit, splice

LENGTHS = st.lists(st.integers(1, 70), max_size=30)


def members(rows: Rows) -> list[list[int]]:
    return [rows.members[rows.offsets[row] : rows.offsets[row + 1]].tolist() for row in range(len(rows))]


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
    rows = members(pack_best_fit(np.array(lengths, dtype=np.int64), max_length))
    assert Counter(piece for row in rows for piece in row) == Counter(range(len(lengths)))
    fills = [sum(lengths[piece] for piece in row) for row in rows]
    assert sorted(fills) == best_fit_decreasing(lengths, max_length)
    assert max(fills, default=0) <= max_length
    assert all(sorted(row, key=lambda piece: -lengths[piece]) == row for row in rows)
    # All rows but one are more than half full on average.
    assert (len(rows) - 1) * max_length <= 2 * sum(lengths)


def test_many_short_pieces_fill_rows_nearly_to_the_brim() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 300, size=3000).clip(1, 2048)
    assert len(pack_best_fit(lengths, 2048)) == -(-int(lengths.sum()) // 2048)


@given(tokens=LENGTHS, max_length=st.integers(2, 20))
def test_pieces_cover_every_document_in_order(tokens: list[int], max_length: int) -> None:
    pieces = cut_documents(np.array(tokens, dtype=np.int64), Cutting(max_length))
    found = list(zip(pieces.documents.tolist(), pieces.starts.tolist(), pieces.lengths.tolist(), strict=True))
    expected = [
        (document, start, min(max_length, length - start))
        for document, length in enumerate(tokens)
        for start in range(0, length, max_length)
    ]
    assert found == expected


def check_cover(pieces: Pieces, tokens: list[int], cutting: Cutting) -> None:
    """Every document is covered once, in order; continuations have their bos; no piece of a cut one is too short."""
    spans: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(tokens))}
    columns = (pieces.documents, pieces.starts, pieces.lengths, pieces.added)
    for document, start, length, added in zip(*(column.tolist() for column in columns), strict=True):
        spans[document].append((start, length))
        assert added == int(cutting.bos_each_piece and start > 0)
        assert length >= min(cutting.min_piece, tokens[document])
    for document, found in spans.items():
        place = 0
        for start, length in sorted(found):
            assert start == place
            place += length
        assert place == tokens[document]


@given(
    tokens=LENGTHS,
    max_length=st.integers(4, 40),
    how=st.sampled_from(["best_fit", "sequential"]),
    bos=st.booleans(),
    data=st.data(),
)
def test_every_token_lies_in_one_row_whatever_the_splice(
    tokens: list[int], max_length: int, how: str, bos: bool, data: st.DataObject
) -> None:
    cutting = Cutting(max_length, bos, data.draw(st.integers(1, (max_length - bos) // 2)))
    pieces, rows = splice(np.array(tokens, dtype=np.int64), how, cutting)  # type: ignore[arg-type]
    check_cover(pieces, tokens, cutting)
    laid = members(rows)
    assert sorted(piece for row in laid for piece in row) == list(range(len(pieces.documents)))
    fills = [int(pieces.widths[row].sum()) for row in laid]
    assert all(0 < fill <= max_length for fill in fills)
    if how == "sequential":
        assert [piece for row in laid for piece in row] == list(range(len(pieces.documents)))
        assert pieces.documents.tolist() == sorted(pieces.documents.tolist())
        short = 0 if cutting.min_piece == 1 and not bos else cutting.min_piece + bos
        assert all(fill > max_length - max(short, 1) - bos or short for fill in fills[:-1])
        if not short:
            assert fills[:-1] == [max_length] * (len(fills) - 1)
    else:
        assert Counter(pieces.documents.tolist()) == Counter(
            {d: 1 + max(0, -(-(length - max_length) // cutting.room)) for d, length in enumerate(tokens)}
        )


def test_no_documents_are_no_rows() -> None:
    for how in ("best_fit", "sequential"):
        pieces, rows = splice(np.zeros(0, dtype=np.int64), how, Cutting(8))  # type: ignore[arg-type]
        assert (len(rows), len(pieces.documents)) == (0, 0)
