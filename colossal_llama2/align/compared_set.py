"""Compared answers by number: of every row, of every answer, and prompts with answers that were given to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.parts import IGNORED, Row


@dataclass(frozen=True)
class NumberedRow(Row):
    """A row that knows which one it is.

    Attributes:
        number: in its set, from 0.
    """

    number: int = 0


class ComparedSet(PreparedCorpus):
    """A preference set that has been gone through once.

    Attributes:
        first_answers: [R + 1] int64, number of each row's first answer among all answers of the set.
        num_pairs: [R] int64, pairs of answers of which one is better.
        num_best: answers of rank 0, over all rows.
    """

    def __init__(self, corpus: PreparedCorpus) -> None:
        vars(self).update(vars(corpus))
        answers, pairs, best = [], [], 0
        for number in range(self.num_rows):
            ranks = self.row(number).ranks
            assert ranks is not None, "a preference set has ranks"
            answers.append(len(ranks))
            pairs.append(int((ranks[:, None] < ranks[None, :]).sum()))
            best += int((ranks == 0).sum())
        self.first_answers: npt.NDArray[np.int64] = np.concatenate([[0], np.cumsum(answers)]).astype(np.int64)
        self.num_pairs: npt.NDArray[np.int64] = np.array(pairs, dtype=np.int64)
        self.num_best = best

    @staticmethod
    def open(dirs: Sequence[Path], types: object = None) -> ComparedSet:
        """Open preference sets.

        Raises:
            InputError: see `PreparedCorpus.open`.
        """
        return ComparedSet(PreparedCorpus.open(dirs, types=("preference",)))

    @property
    def num_answers(self) -> int:
        """Answers of all rows."""
        return int(self.first_answers[-1])

    def row(self, index: int) -> NumberedRow:
        """Return a row by its global number."""
        return NumberedRow(**vars(super().row(index)), number=index)

    def mismatched(self, index: int, max_length: int) -> NumberedRow | None:
        """Put the prompt of a row and an answer to another prompt together.

        The answer is the first of the next row, counting round, that has another prompt and fits: the same whatever
        batch the row is in. Tokens on the seam are those that the two had apart.

        Args:
            index: number of the row whose prompt it is.
            max_length: longest sequence, in tokens.

        Returns:
            A row of one answer under the number of the prompt's row; None if there is no other prompt, or none fits.
        """
        prompt, _ = _divided(self.row(index))
        for step in range(1, self.num_rows):
            other, answer = _divided(self.row((index + step) % self.num_rows))
            if len(prompt) + len(answer[0]) <= max_length and not np.array_equal(prompt, other):
                ids, labels = answer
                return NumberedRow(
                    np.concatenate([prompt, ids]),
                    np.concatenate([np.full(len(prompt), IGNORED, dtype=np.int32), labels]),
                    np.array([len(prompt) + len(ids)], dtype=np.int32),
                    np.zeros(1, dtype=np.int32),
                    index,
                )
        return None


_Ints = npt.NDArray[np.int32]


def _divided(row: Row) -> tuple[_Ints, tuple[_Ints, _Ints]]:
    """Divide the first sequence of a row into its prompt, and the ids and labels of its answer."""
    ids, labels = row.input_ids[: row.seq_lens[0]], row.labels[: row.seq_lens[0]]
    begin = int((labels != IGNORED).argmax())
    return ids[:begin], (ids[begin:], labels[begin:])
