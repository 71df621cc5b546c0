"""The account of what was asked for and what became of it; it balances, or the command fails."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from colossal_llama2.chat.asking import Lost
from colossal_llama2.chat.novelty import Verdict


@dataclass
class Tally:
    """What became of the items of one stage.

    Attributes:
        asked: items that were asked for.
        kept: those that are in the output, or in what the next stage is asked for.
        duplicates: repeats of kept ones: exact after normalisation, or near.
        malformed: items whose answers were of no use in the end, by reason.
        failed: items that got no answer, by reason.
        beyond_num: good ones that were more than --num.
        not_reached: items that a limit came before; they are not among those asked for.
        remarks: other things worth a number, outside the balance.
    """

    asked: int = 0
    kept: int = 0
    duplicates: Counter[str] = field(default_factory=Counter)
    malformed: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    beyond_num: int = 0
    not_reached: int = 0
    remarks: Counter[str] = field(default_factory=Counter)

    def lose(self, lost: Lost, count: int = 1) -> None:
        """Count items that were not made."""
        if lost.how == "not_reached":
            self.not_reached += count
            return
        self.asked += count
        (self.malformed if lost.how == "malformed" else self.failed)[lost.reason] += count

    def take(self, verdict: Verdict) -> bool:
        """Count an item that was made, and tell whether it is kept."""
        self.asked += 1
        if verdict == "new":
            self.kept += 1
            return True
        self.duplicates[verdict] += 1
        return False

    def repeat(self, reason: str) -> None:
        """Count an item that repeats another one."""
        self.asked += 1
        self.duplicates[reason] += 1

    def as_ledger(self) -> dict[str, Any]:
        """Return the counts.

        Raises:
            RuntimeError: they do not balance.
        """
        lost = (self.duplicates, self.malformed, self.failed)
        if self.asked != self.kept + self.beyond_num + sum(counts.total() for counts in lost):
            raise RuntimeError(f"the ledger does not balance: {self}")
        return {
            "asked": self.asked,
            "kept": self.kept,
            "duplicates": dict(sorted(self.duplicates.items())),
            "malformed": dict(sorted(self.malformed.items())),
            "failed": dict(sorted(self.failed.items())),
            "beyond_num": self.beyond_num,
            "not_reached": self.not_reached,
            "remarks": dict(sorted(self.remarks.items())),
        }


@dataclass(frozen=True)
class Made:
    """What a kind of making gives back: the records in order, and the tally of each of its stages."""

    records: list[dict[str, Any]]
    stages: dict[str, Tally]
    findings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """What a run would send if every answer were of use at once and as long as --max_tokens allows.

    Attributes:
        requests: how many.
        prompt_tokens: tokens of all prompts, at most (about).
        completion_tokens: tokens of all answers, at most.
        samples: the first questions, as they would be sent.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    samples: list[list[dict[str, str]]]


def about_tokens(text: str) -> int:
    """Guess how many tokens a text has: one for 4 bytes of a Latin script, one for a character of the others."""
    ascii_letters = sum(character < "\u0250" for character in text)
    return ascii_letters // 4 + len(text) - ascii_letters + 1
