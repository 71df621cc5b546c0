"""Whether a text says something new: exact repeats after normalisation, near ones by ROUGE-L."""

from __future__ import annotations

import re
import unicodedata
from typing import Final, Literal

from colossal_llama2.chat.endpoint import import_extra
from colossal_llama2.errors import InputError

Verdict = Literal["new", "exact", "near"]
# Scripts that are written without blanks between the words: each character counts as a word.
_UNSPACED: Final = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Han
)
_WORD: Final = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])\w)+")
_WORDS_COMPARED: Final = 128
_SURROGATES: Final = range(0xD800, 0xE000)
_MOST_WORDS: Final = 0x110000 - len(_SURROGATES)


class KeptTexts:
    """Texts that are kept, and the measure of those that come after.

    Two texts are near when the F-measure of their longest common subsequence of words (ROUGE-L, Lin 2004, as in
    self-instruct, arXiv 2212.10560, section 2.2) reaches a threshold. Words are compared without case, punctuation and
    compatibility forms; characters of scripts without blanks are words.

    A text is compared with all that are kept, so of a long one only the first 128 words: whole conversations would take
    hours where their beginnings take minutes. Exact means the whole text.

    Args:
        threshold: from 0 to 1; 1 finds only what has the same words in the same order.

    Raises:
        InputError: the threshold is out of range, or rapidfuzz is not installed.
    """

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold <= 1:
            raise InputError("--novelty is not above 0 and at most 1", remedy="0.7 is the paper's")
        self._distances = import_extra("rapidfuzz.distance")
        self._process = import_extra("rapidfuzz.process")
        self._threshold = threshold
        self._characters: dict[str, str] = {}
        self._exact: set[str] = set()
        self._kept: list[str] = []

    def add(self, text: str) -> None:
        """Keep a text, whatever it repeats."""
        spelled = self._spell(text)
        self._exact.add(spelled)
        self._kept.append(spelled[:_WORDS_COMPARED])

    def judge(self, text: str) -> Verdict:
        """Tell whether a text is new; it is not kept by that."""
        spelled = self._spell(text)
        if spelled in self._exact:
            return "exact"
        # 2 LCS / (a + b) is both the F-measure and what rapidfuzz calls the normalised indel similarity.
        scorer = self._distances.Indel.normalized_similarity
        near = self._process.extractOne(
            spelled[:_WORDS_COMPARED], self._kept, scorer=scorer, score_cutoff=self._threshold
        )
        return "new" if near is None else "near"

    def judge_and_keep(self, text: str) -> Verdict:
        """Tell whether a text is new, and keep it if so."""
        verdict = self.judge(text)
        if verdict == "new":
            self.add(text)
        return verdict

    def _spell(self, text: str) -> str:
        """Write each word as one character, which is what the fast comparison takes."""
        words = words_of(text) or [text.strip()]  # signs alone: the text as it is
        return "".join(self._character(word) for word in words)

    def _character(self, word: str) -> str:
        found = self._characters.get(word)
        if found is None:
            code = len(self._characters)
            # Past a million different words, further ones share characters: texts then look nearer than they are.
            code %= _MOST_WORDS
            found = chr(code + len(_SURROGATES) if code >= _SURROGATES.start else code)
            self._characters[word] = found
        return found


def words_of(text: str) -> list[str]:
    """Split a text into the words that are compared."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
