"""The flags that decide what a record is, and which records are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from colossal_llama2.dataset.records import CATEGORY, SOURCE, TARGET, Reading
from colossal_llama2.dataset.text_hashes import Deduplicate
from colossal_llama2.errors import InputError


@dataclass(frozen=True)
class InputOptions:
    """What is read from the input files."""

    bad_records: Literal["error", "skip"] = "error"
    """What to do with a line or row that is not a record: stop and name it, or pass it over and list it."""
    text_field: str | None = None
    """Field that is learned whole, with no source; not given, "text" is learned where a record has no target."""
    source_field: str | None = None
    """Field that is seen before the target; "source" if not given."""
    target_field: str | None = None
    """Field that is learned; "target" if not given, and "text" is not looked at if it is."""
    category_field: str = CATEGORY
    """Field that names the sub-dataset."""
    category_from: Literal["field", "file", "folder"] = "field"
    """Where the sub-dataset's name comes from: the record, the file's name as the ledger has it, or its folder's."""
    deduplicate: Deduplicate = "none"
    """Leave out documents whose text stood before: exact to the character, or minhash for nearly the same text."""
    dedup_threshold: float = 0.8
    """With --deduplicate minhash, the share of common shingles from which two texts are the same."""

    @property
    def reading(self) -> Reading:
        """What is a record.

        Raises:
            InputError: the fields contradict one another.
        """
        if self.text_field is not None and (self.source_field is not None or self.target_field is not None):
            raise InputError(
                "--text_field learns that field alone, without --source_field and --target_field",
                remedy="leave it out, or the others",
            )
        names = (self.text_field, self.source_field, self.target_field, self.category_field)
        if "" in names:
            raise InputError("a field's name cannot be empty", remedy="name it or leave the flag out")
        if (self.source_field or SOURCE) == (self.target_field or TARGET):
            raise InputError("--source_field and --target_field name one field", remedy="name two")
        return Reading(self.bad_records == "skip", *names, self.category_from)

    def check(self) -> None:
        """Refuse what cannot work, before anything is read.

        Raises:
            InputError: see `reading`; or the threshold is no share.
        """
        _ = self.reading
        if not 0.1 <= self.dedup_threshold <= 1:
            raise InputError(f"--dedup_threshold is {self.dedup_threshold}", remedy="give a share from 0.1 to 1")
