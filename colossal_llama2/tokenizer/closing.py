"""Close the merges: make every wanted piece come out of its own text, with as few pieces beside them as possible.

BPE makes a piece only by joining two pieces it has, so a wanted piece may lack halves (no order of merges builds it),
or have them and lose them to another merge that comes first. The latter are given an earlier turn where that costs no
other piece its own; for whatever is left, pieces in between are added. These are merged after all wanted ones, so they
never take anything from a piece that already comes out: its text has nothing left to merge by then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from colossal_llama2.tokenizer.expander import LeftOut, UnreachablePolicy
from colossal_llama2.tokenizer.intermediates import fewest_intermediates
from colossal_llama2.tokenizer.merges import Merges

NO_HALVES: Final = "no two pieces join to it"
NO_CHARACTER: Final = "which is not a piece itself"
BEATEN: Final = "another merge comes first"
NOT_ALLOWED: Final = "needs a piece in between that may not be added"


@dataclass(frozen=True)
class Closed:
    """Wanted pieces that come out of their own text, and what it took.

    Attributes:
        wanted: the pieces kept, as they were given.
        intermediates: pieces added so that wanted ones can be built, characters first.
        merge_order: all of these in the order in which they are to be merged.
        raised: those that were given an earlier turn than the list gave them.
        left_out: wanted pieces that do not come out.
    """

    wanted: tuple[str, ...]
    intermediates: tuple[str, ...]
    merge_order: tuple[str, ...]
    raised: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def close_merges(
    base: Merges, pieces: Sequence[str], policy: UnreachablePolicy, allows: Callable[[str], bool]
) -> Closed:
    """Order the merges of new pieces, and add or leave out pieces, so that all that are left come out of their text.

    A character that is no piece is the smallest piece in between: without it the characters of a word reach the merges
    as bytes, or as nothing known.

    Args:
        base: the merges of the base.
        pieces: the wanted pieces, in the order in which they are to be merged.
        policy: `close` adds pieces in between; otherwise what does not come out is left out.
        allows: says of a text whether a piece may be added for it.
    """
    left_out: dict[str, LeftOut] = {}
    while True:
        wanted = [piece for piece in pieces if piece not in left_out]
        merges = base.copy()
        merges.append(wanted)
        characters, dropped = _missing_characters(merges, wanted, policy, allows)
        merges.append(characters)
        raised: list[str] = []
        intermediates: list[str] = []
        if not dropped:
            stuck = _stuck(merges, wanted)
            raised = _raise(base, merges, wanted, stuck)
            if policy == "close":
                intermediates, dropped = _add_intermediates(merges, stuck, allows)
            else:
                dropped = [LeftOut(piece, _reason(base, merges, piece, parts)) for piece, parts in stuck.items()]
        if not dropped:
            break
        # Without a piece, others that were built over it may no longer be, and less may be needed: from the start.
        left_out.update({item.piece: item for item in dropped})
    used = {made for piece in wanted for made in merges.run(piece)[1]} if intermediates else set()
    intermediates = characters + [piece for piece in intermediates if piece in used]
    return Closed(
        wanted=tuple(wanted),
        intermediates=tuple(intermediates),
        merge_order=tuple(merges.in_order([*wanted, *intermediates])),
        raised=tuple(raised),
        left_out=tuple(item for piece in pieces if (item := left_out.get(piece))),
    )


def _missing_characters(
    merges: Merges, wanted: Sequence[str], policy: UnreachablePolicy, allows: Callable[[str], bool]
) -> tuple[list[str], list[LeftOut]]:
    """Return the characters that must be added, and the pieces that hold one that may not be."""
    added: dict[str, None] = {}
    dropped = []
    for piece in wanted:
        missing = [character for character in piece if character not in merges]
        refused = [character for character in missing if policy != "close" or not allows(character)]
        if refused:
            dropped.append(LeftOut(piece, f"holds {refused[0]} (U+{ord(refused[0]):04X}), {NO_CHARACTER}"))
        else:
            added.update(dict.fromkeys(missing))
    return list(added), dropped


def _stuck(merges: Merges, pieces: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the pieces that do not come out of their own text, with what does."""
    ended = ((piece, merges.run(piece)[0]) for piece in pieces)
    return {piece: parts for piece, parts in ended if len(parts) > 1}


def _add_intermediates(
    merges: Merges, stuck: dict[str, tuple[str, ...]], allows: Callable[[str], bool]
) -> tuple[list[str], list[LeftOut]]:
    """Add layer after layer behind all other merges, until nothing is stuck that can be helped.

    A layer joins what a stuck piece ended as, so each leaves every one of them in fewer parts; more than one is needed
    where an added piece, too, is beaten to it.
    """
    added: list[str] = []
    impossible: list[str] = []
    while stuck:
        needed = fewest_intermediates(stuck, merges, allows)
        impossible += needed.impossible
        merges.append(needed.pieces)
        added += needed.pieces
        again = [piece for piece in stuck if piece not in needed.impossible]
        before, stuck = stuck, _stuck(merges, again)
        if not needed.pieces or any(parts == before[piece] for piece, parts in stuck.items()):
            impossible += stuck  # runs of spaces merge even later, and may stand in the way
            break
    return added, [LeftOut(piece, NOT_ALLOWED) for piece in impossible]


def _raise(base: Merges, merges: Merges, wanted: Sequence[str], stuck: dict[str, tuple[str, ...]]) -> list[str]:
    """Give earlier turns to the pieces over which a beaten one can be built; takes what then comes out of `stuck`.

    A turn is kept only where no other piece stops coming out of its text; only those that hold a raised piece can.
    """
    raised: dict[str, None] = {}
    holders = _Holders(wanted)
    for piece in list(stuck):
        parts, _ = base.run(piece)
        nodes = _inner_pieces(parts, merges)
        if nodes is None:
            continue
        turns = merges.turns_of(nodes)
        merges.raise_to_front(merges.in_order(nodes))
        touched = {holder for node in nodes for holder in holders.of(node) if holder not in stuck}
        if len(merges.run(piece)[0]) == 1 and not _stuck(merges, sorted(touched)):
            del stuck[piece]
            raised.update(dict.fromkeys(nodes))
        else:
            merges.restore(turns)
    return list(raised)


def _inner_pieces(parts: Sequence[str], merges: Merges) -> list[str] | None:
    """Return the inner nodes of a tree over parts that are all pieces already, or None where there is no such tree."""
    spans: dict[tuple[int, int], int] = {(at, at + 1): 0 for at in range(len(parts))}
    for length in range(2, len(parts) + 1):
        for begin in range(len(parts) - length + 1):
            end = begin + length
            if "".join(parts[begin:end]) in merges:
                cuts = (at for at in range(begin + 1, end) if (begin, at) in spans and (at, end) in spans)
                cut = next(cuts, None)
                if cut is not None:
                    spans[begin, end] = cut
    if (0, len(parts)) not in spans:
        return None
    nodes, open_spans = [], [(0, len(parts))]
    while open_spans:
        begin, end = open_spans.pop()
        if end - begin > 1:
            open_spans += [(begin, spans[begin, end]), (spans[begin, end], end)]
            nodes.append("".join(parts[begin:end]))
    return list(dict.fromkeys(nodes[1:]))


def _reason(base: Merges, merges: Merges, piece: str, parts: Sequence[str]) -> str:
    nodes = _inner_pieces(base.run(piece)[0], merges)
    return f"{NO_HALVES if nodes is None else BEATEN}; its text gives {' '.join(parts)}"


class _Holders:
    """Finds the pieces that hold a text, in one search through all of them."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces
        self._joined = "\n".join(pieces)  # no piece holds a line ending
        self._begins: list[int] = []
        at = 0
        for piece in pieces:
            self._begins.append(at)
            at += len(piece) + 1

    def of(self, text: str) -> Iterator[str]:
        """Yield the pieces that hold the text, some more than once."""
        at = self._joined.find(text)
        while at >= 0:
            yield self._pieces[bisect_right(self._begins, at) - 1]
            at = self._joined.find(text, at + 1)
