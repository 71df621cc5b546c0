"""What is not a record: stops the command, or is listed, as the user chose."""

from __future__ import annotations

from colossal_llama2.dataset.inputs import Segment, first_line_number
from colossal_llama2.dataset.records import Reading, Refusal
from colossal_llama2.errors import InputError


def refuse(error: InputError, segment: Segment, before: int, reading: Reading, refusals: list[Refusal]) -> None:
    """List what an error complains of, or raise it with its line (of parquet and Arrow: its row).

    Args:
        error: the complaint; its own line does not count.
        segment: where it is.
        before: lines or rows of the segment ahead of it.
        reading: says whether it is skipped.
        refusals: the list.

    Raises:
        InputError: bad records are not skipped.
    """
    line = first_line_number(segment) + before
    if reading.skip_bad_records:
        refusals.append(Refusal(segment.file.name, line, error.what))
        return
    remedy = f"{error.remedy or 'mend it'}, or pass --bad_records skip"
    if segment.file.kind in ("parquet", "arrow"):
        raise InputError(f"row {line}: {error.what}", path=segment.file.path, remedy=remedy) from None
    raise InputError(error.what, path=segment.file.path, line=line, remedy=remedy) from None
