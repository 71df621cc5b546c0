"""Old text keeps its tokens: which texts an expansion must leave alone, and the proof on a sample that it does.

A new piece comes out of a text only where all its characters stand in it. So text written with certain characters alone
is left as it is by every piece that holds another character: that much is true by construction. What the sample holds
beyond them is encoded before and after, and compared.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

import numpy as np

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.encoder import Encoder
from colossal_llama2.tokenizer.expander import Attempt, LeftOut

OnChange = Literal["error", "drop", "allow"]

ASCII: Final = frozenset(map(chr, range(128)))
SCRIPT_SHARE: Final = 0.01
"""A script with a smaller share of the sample's letters is not the old language."""
LETTER_SHARE: Final = 1e-4
"""A letter with a smaller share of the sample's characters is a stray one: a foreign name, say."""
_BATCH: Final = 1000
_QUOTED: Final = 30


@dataclass(frozen=True)
class OldText:
    """What a sample says of the texts that are to keep their tokens.

    Attributes:
        characters: the old characters: all of ASCII, every character of the sample that is not a letter, and every
            letter that is not stray there; documents with letters of the new language do not count.
        scripts: share of each script among the sample's letters.
        new_scripts: scripts of the new language, see `read_old_text`.
        new_letters: the sample's letters of those scripts; a document with one of them is not old text.
        num_documents: documents held to their tokens.
        num_mixed: documents that are not, because they hold letters of the new language.
    """

    characters: frozenset[str]
    scripts: dict[str, float]
    new_scripts: tuple[str, ...]
    new_letters: frozenset[str]
    num_documents: int
    num_mixed: int

    @property
    def old_scripts(self) -> list[str]:
        """The scripts the sample is written in, stray letters aside."""
        return [name for name, share in self.scripts.items() if share >= SCRIPT_SHARE]

    def covers(self, text: str) -> bool:
        """Tell whether a text is written with old characters alone: a piece of it could stand in any old text."""
        return self.characters.issuperset(text)

    def is_mixed(self, text: str) -> bool:
        """Tell whether a document holds letters of the new language, and is not held to its tokens."""
        return not self.new_letters.isdisjoint(text)


@dataclass(frozen=True)
class Changes:
    """What an expansion does to a sample.

    Attributes:
        changed: documents held to their tokens that got others.
        mixed_changed: the same among the documents that are not held to theirs.
        longer: documents of either kind that got more tokens than before.
        by_piece: new pieces that came out of a held document, each with the beginning of the first such document.
    """

    changed: int
    mixed_changed: int
    longer: int
    by_piece: dict[str, str]


@dataclass(frozen=True)
class Kept:
    """An expansion that was held against a sample.

    Attributes:
        attempt: the expansion.
        old: what is held to its tokens.
        changes: what still changes; nothing but with `allow`.
        changing: wanted pieces that change old text, or could, and were left out; with `allow` all pieces that do or
            could, in between or wanted, which were kept.
        banned: intermediate pieces that had to be done without for the same reason.
    """

    attempt: Attempt
    old: OldText
    changes: Changes
    changing: tuple[LeftOut, ...]
    banned: tuple[str, ...]


def script_of(character: str) -> str | None:
    """Return the script of a letter, as the first word of its Unicode name says it; None for what is not a letter."""
    if unicodedata.category(character)[0] != "L":
        return None
    words = unicodedata.name(character, "UNNAMED").split()
    script = words[1] if words[0] in ("FULLWIDTH", "HALFWIDTH") else words[0]
    return "CJK" if script == "IDEOGRAPHIC" else script


def read_old_text(documents: Iterable[str], pieces: Iterable[str]) -> OldText:
    """Find out from a sample and a list of pieces which texts are old.

    A script belongs to the new language when it has at least `SCRIPT_SHARE` of the letters of the list, and less than
    that of the letters of the sample. One language's quotation in the sample of another so forbids none of its pieces,
    and where both write with the same letters no document is left aside.

    Args:
        documents: the sample; it is gone through twice.
        pieces: the texts of the new pieces.

    Raises:
        InputError: every document holds letters of the new language.
    """
    letters = _letters(_count(documents))
    scripts, listed = _script_shares(letters), _script_shares(_letters(_count(pieces)))
    new = {name for name, share in listed.items() if share >= SCRIPT_SHARE and scripts.get(name, 0.0) < SCRIPT_SHARE}
    new_letters = frozenset(letter for letter in letters if script_of(letter) in new)
    held: Counter[str] = Counter()
    num_documents = num_mixed = 0
    for document in documents:
        if new_letters.isdisjoint(document):
            num_documents += 1
            held.update(document)
        else:
            num_mixed += 1
    if not num_documents:
        raise InputError(
            f"every document of the sample of old text holds letters of the new language ({', '.join(sorted(new))})",
            remedy="give a sample of the language whose tokens are to stay",
        )
    least = LETTER_SHARE * held.total()
    usual = {character for character, count in held.items() if script_of(character) is None or count >= least}
    return OldText(ASCII | usual, scripts, tuple(sorted(new)), new_letters, num_documents, num_mixed)


def keep_old_text(
    pieces: Sequence[str],
    as_text: Callable[[str], str],
    build: Callable[[Sequence[str], Callable[[str], bool]], Attempt],
    before: Encoder,
    held: tuple[OldText, Iterable[str]],
    on_change: OnChange,
) -> Kept:
    """Build an expansion that leaves old text as it is.

    Pieces written with old characters alone are left out, and no intermediate may be one; then the sample is encoded
    before and after, and the pieces that come out of a document that changed are left out too, until none is left.

    Args:
        pieces: new pieces, in the order of their merges.
        as_text: the text a piece stands for.
        build: builds an expansion of pieces; the second argument says of a text whether an intermediate piece may
            stand for it.
        before: the source's encoder.
        held: which texts are old, and the documents of the sample; they are gone through once a round.
        on_change: `drop` leaves the pieces out; `allow` keeps them and counts what they change; `error` refuses.

    Raises:
        InputError: with `error`, naming the pieces; or, but with `allow`, a document changed in which no new piece
            came out.
    """
    old, documents = held
    old_before = _Before(before, documents, old)
    everywhere = [LeftOut(piece, "holds nothing but old characters") for piece in pieces if old.covers(as_text(piece))]
    if on_change == "allow":
        attempt = build(pieces, lambda text: True)
        changes = old_before.compare(attempt, as_text, only_count=True)
        found = {item.piece for item in everywhere}
        seen = [_in_document(piece, quoted) for piece, quoted in changes.by_piece.items() if piece not in found]
        return Kept(attempt, old, changes, tuple(everywhere + seen), ())
    left_out, banned = {item.piece: item for item in everywhere}, dict[str, None]()
    while True:
        kept = [piece for piece in pieces if piece not in left_out]
        attempt = build(kept, lambda text: not old.covers(text) and text not in banned)
        changes = old_before.compare(attempt, as_text)
        if not changes.by_piece:
            break
        wanted = set(kept)
        for piece, quoted in changes.by_piece.items():
            if piece in wanted:
                left_out[piece] = _in_document(piece, quoted)
            else:
                banned[as_text(piece)] = None
    if on_change == "error" and left_out:
        raise _refusal(list(left_out.values()))
    return Kept(attempt, old, changes, tuple(left_out.values()), tuple(banned))


class _Before:
    """A sample with the ids it had, held as one number a document."""

    def __init__(self, before: Encoder, documents: Iterable[str], old: OldText) -> None:
        self._documents, self._old = documents, old
        self._base = before.num_tokens
        self._known: list[tuple[int, int]] = []
        for texts in _batches(documents):
            encoded = before.encode(texts)
            for start, end in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True):
                self._known.append((hash(encoded.ids[start:end].tobytes()), int(end - start)))

    def compare(self, attempt: Attempt, as_text: Callable[[str], str], only_count: bool = False) -> Changes:
        """Encode the sample again and say what became of it.

        A document can change though no new piece stands in it: where new merges lead to a piece of the base that its
        own merges never reach there.

        Raises:
            InputError: a document changes in that way, and it is not `only_count`: there is no piece to leave out.
        """
        new = attempt.new_pieces
        changed = mixed_changed = longer = 0
        by_piece: dict[str, str] = {}
        known = iter(self._known)
        for texts in _batches(self._documents):
            encoded = attempt.encoder.encode(texts)
            for text, start, end in zip(texts, encoded.offsets[:-1], encoded.offsets[1:], strict=True):
                ids = encoded.ids[start:end]
                digest, length = next(known)
                longer += len(ids) > length
                if hash(ids.tobytes()) == digest and len(ids) == length:
                    continue
                if self._old.is_mixed(text):
                    mixed_changed += 1
                    continue
                changed += 1
                came_out = np.unique(ids[ids >= self._base])
                if not len(came_out) and not only_count:
                    raise InputError(
                        f"the document {text[:_QUOTED]!r} of the sample changes though no new piece comes out of it",
                        remedy="take out the pieces that share its words, or start from another base",
                    )
                for index in came_out.tolist():
                    piece = new[index - self._base]
                    by_piece.setdefault(piece, _around(text, as_text(piece)))
        return Changes(changed, mixed_changed, longer, by_piece)


def _in_document(piece: str, quoted: str) -> LeftOut:
    return LeftOut(piece, f"comes out of old text: {quoted!r}")


def _around(text: str, part: str) -> str:
    """Quote the place where a piece stands; a dummy prefix is not in the text."""
    at = max(text.find(part), text.find(part.removeprefix(" ")), 0)
    return text[max(at - _QUOTED // 2, 0) : at + len(part) + _QUOTED // 2]


def _refusal(changing: Sequence[LeftOut]) -> InputError:
    shown = ", ".join(repr(item.piece) for item in changing[:_QUOTED])
    return InputError(
        f"{len(changing)} pieces would change old text: {shown}{', ...' if len(changing) > _QUOTED else ''}",
        remedy="take them out of the list, or pass --on_change drop to leave them out or allow to keep them",
    )


def _count(texts: Iterable[str]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for text in texts:
        counted.update(text)
    return counted


def _letters(characters: Counter[str]) -> Counter[str]:
    return Counter({character: count for character, count in characters.items() if script_of(character)})


def _script_shares(letters: Counter[str]) -> dict[str, float]:
    total = letters.total()
    scripts: Counter[str] = Counter()
    for letter, count in letters.items():
        scripts[script_of(letter) or ""] += count
    return {name: count / total for name, count in scripts.most_common()}


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(documents)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
