"""What a mined piece may be made of: characters sorted into digits, letters of a script, and others; old and new."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from colossal_llama2.tokenizer.mining_state import DIGIT, LETTER, MARK, NEVER, NEW, OTHER, Rules
from colossal_llama2.tokenizer.old_text import read_old_text
from colossal_llama2.tokenizer.piece_list import MAX_PIECE_CHARACTERS
from colossal_llama2.tokenizer.piece_model import SPACE_MARK, PieceModel

ALWAYS_OLD: Final = frozenset(map(chr, [*range(0x100), *range(0x2000, 0x2070), ord(SPACE_MARK)]))
"""ASCII, Latin-1, general punctuation and the space: curly quotes and dashes stand in Western text of every kind."""

# Written together in Japanese; SentencePiece's trainer takes them for one script too.
_ONE_SCRIPT: Final = dict.fromkeys(("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"), "CJK")
_WIDTHS: Final = ("FULLWIDTH", "HALFWIDTH", "MODIFIER", "COMBINING")


@dataclass(frozen=True)
class Allowed:
    """Rules that can be lifted."""

    allow_digits: bool = False
    """Let pieces hold digits and other numerals (of any script; Chinese 一二三 are letters and always allowed)."""

    allow_mixed_scripts: bool = False
    """Let pieces hold letters of two scripts, such as Chinese and Latin ones."""

    allow_punctuation: bool = False
    """Let pieces hold letters next to punctuation even where the base's own training kept them apart."""

    allow_old_characters: bool = False
    """Let pieces consist of characters of the old language alone; text of it then gets other tokens than before."""

    allow_personal_data: bool = False
    """Do not cut e-mail addresses, telephone numbers, long runs of digits and URLs with a user's name out of the text
    before counting."""


class CharacterKinds:
    """Sorts characters and pieces, and remembers what it found."""

    def __init__(self, old: frozenset[str]) -> None:
        self._old = old
        self._scripts: dict[str, int] = {}
        self._known: dict[str, tuple[int, int]] = {}

    def of_piece(self, piece: str) -> tuple[int, int]:
        """Return the flags of all characters of a piece, and the number of its letters' script.

        The number is 0 for a piece without letters, and -1 for one with letters of two scripts.
        """
        flags, script = 0, 0
        for character in piece:
            its_flags, its_script = self._of_character(character)
            flags |= its_flags
            if its_script:
                script = its_script if script in (0, its_script) else -1
        return flags, script

    def _of_character(self, character: str) -> tuple[int, int]:
        if character not in self._known:
            flags, script = kind_of(character)
            number = self._scripts.setdefault(script, len(self._scripts) + 1) if script else 0
            self._known[character] = (flags | (0 if character in self._old else NEW), number)
        return self._known[character]


def kind_of(character: str) -> tuple[int, str | None]:
    """Return what a character is (one flag), and its script if it is a letter.

    Numerals are of the categories Nd, Nl and No. Controls, spaces of any kind, private and unassigned characters are in
    no new piece ever.
    """
    category = unicodedata.category(character)
    if character == SPACE_MARK:
        return MARK, None
    if category in ("Nd", "Nl", "No"):
        return DIGIT, None
    if category in ("Cc", "Cn", "Co", "Cs") or character.isspace():
        return NEVER, None
    if category[0] in "LM":
        return LETTER, script_of(character)
    return OTHER, None


def script_of(letter: str) -> str | None:
    """Return a letter's script as the first word of its Unicode name tells it; None for a mark that suits any script.

    Han, Hiragana and Katakana count as one.
    """
    words = [word for word in unicodedata.name(letter, "UNNAMED").split() if word not in _WIDTHS[:2]]
    if words[0] in _WIDTHS:
        return None
    return _ONE_SCRIPT.get(words[0], words[0])


def find_old_characters(sample: Sequence[str], corpus: Iterable[str]) -> frozenset[str]:
    """Return the characters of the old language: a piece made of them alone could stand in its text.

    These are `ALWAYS_OLD`, and what `read_old_text` finds in the sample, so that no piece is mined that an expansion
    with the same sample would leave out.

    Raises:
        InputError: every document of the sample holds letters of the new language.
    """
    return ALWAYS_OLD | read_old_text(sample, corpus).characters if sample else ALWAYS_OLD


def make_rules(model: PieceModel, allowed: Allowed, max_length: int | None, fewest: tuple[int, int]) -> Rules:
    """Put the rules together: the user's, and those by which the base was trained.

    Args:
        model: the base; its trainer's settings say whether a space mark may stand inside a piece, whether letters and
            other characters may stand together, and how long a piece may be.
        allowed: rules lifted.
        max_length: most characters of a piece; None takes the trainer's.
        fewest: least uses and documents of a piece.
    """
    spec = model.trainer_spec
    return Rules(
        max_length=min(max_length or spec.max_sentencepiece_length, MAX_PIECE_CHARACTERS),
        forbidden=NEVER if allowed.allow_digits else NEVER | DIGIT,
        required=0 if allowed.allow_old_characters else NEW,
        one_script=not allowed.allow_mixed_scripts,
        letters_apart=bool(spec.split_by_unicode_script) and not allowed.allow_punctuation,
        mark_first=bool(spec.split_by_whitespace),
        min_count=fewest[0],
        min_documents=fewest[1],
    )
