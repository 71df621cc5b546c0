"""Parquet and Arrow: row groups and record batches, read some rows at a time and only in the columns needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def cut_groups(path: Path, kind: str, shard_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first, end, about how many bytes) of runs of row groups or record batches of about `shard_bytes`."""
    raise NotImplementedError


def count_rows_before(path: Path, kind: str, group: int) -> int:
    """Count the rows ahead of a row group or record batch."""
    raise NotImplementedError
