"""Words that neither a prompt nor an answer may hold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from colossal_llama2.errors import InputError

# Beside those of the categories for control and format: Unicode's Default_Ignorable_Code_Point.
_UNSEEN: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)


class WordFilter:
    """Finds words however they are written: capitals, full-width letters and invisible characters make no difference,
    nor does the number or kind of the blanks between two of them.

    A word of letters that are written with spaces between words counts where it stands alone: a filtered "ass" is not
    found in "class". A Chinese one counts wherever it stands.

    Args:
        words: at least one.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._words = frozenset(folded for word in words if (folded := _fold_all(word)[0].strip()))
        if not self._words:
            raise ValueError("no words")
        self._beginnings = frozenset(word[:size] for word in self._words for size in range(1, len(word) + 1))

    def find(self, text: str, before: str = "", whole: bool = True) -> int | None:
        """Return where in the text the first word begins; None where there is none.

        Args:
            text: where to look.
            before: the folded character in front of it (see `last_folded`), if there is one.
            whole: whether the text ends here; otherwise a word at its very end may still grow into another one.
        """
        folded, places = _fold_all(text, before)
        for start in range(len(folded)):
            if _runs_on(folded[start - 1] if start else before, folded[start]):
                continue
            for end in range(start + 1, len(folded) + 1):
                piece = folded[start:end]
                if piece not in self._beginnings:
                    break
                if piece not in self._words:
                    continue
                ends_here = not _runs_on(piece[-1], folded[end]) if end < len(folded) else whole or not _spaced(piece)
                if ends_here:
                    return places[start]
        return None

    def open_tail(self, text: str, before: str = "") -> int:
        """Return how many characters at the end may belong to a word that is not whole yet."""
        folded, places = _fold_all(text, before)
        for start in range(len(folded)):
            runs_on = _runs_on(folded[start - 1] if start else before, folded[start])
            if not runs_on and folded[start:] in self._beginnings:
                return len(text) - places[start]
        return 0


def last_folded(text: str, before: str = "") -> str:
    """Return what must be known of a text to look for words behind it: its last character that is seen, folded."""
    return next((folded[-1] for character in reversed(text) if (folded := _fold(character))), before)


def read_words(path: Path) -> WordFilter:
    """Read a file with one word a line; blank lines do not count.

    Raises:
        InputError: it cannot be read, is not UTF-8, or holds no word.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8", path=path, remedy="convert the file to UTF-8") from None
    try:
        return WordFilter(line.strip() for line in lines)
    except ValueError:
        raise InputError("holds no word", path=path, remedy="write one word a line") from None


def _fold(character: str) -> str:
    """Return what a character counts as; nothing for an invisible one."""
    if character.isspace():
        return " "
    if unicodedata.category(character) in ("Cf", "Cc") or _UNSEEN.match(character):
        return ""
    return unicodedata.normalize("NFKD", character).casefold()


def _fold_all(text: str, before: str = "") -> tuple[str, list[int]]:
    """Return the text folded, and for each character of that where it comes from; of several blanks one is left."""
    folded, places, last = [], [], before
    for place, character in enumerate(text):
        part = _fold(character)
        if not part or part == last == " ":
            continue
        folded.append(part)
        places += [place] * len(part)
        last = part[-1]
    return "".join(folded), places


def _runs_on(left: str, right: str) -> bool:
    """Tell whether two neighbours lie inside a word of letters that are written with spaces between words."""
    return _spaced(left) and _spaced(right)


def _spaced(text: str) -> bool:
    """Tell whether a text ends with a letter of words with spaces between them, all but East Asia's, or a digit."""
    last = text[-1:]
    return last.isalnum() and unicodedata.name(last, " ").split(" ")[0] not in ("CJK", "HIRAGANA", "KATAKANA")
