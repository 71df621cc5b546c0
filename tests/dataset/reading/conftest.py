"""Corpora in every kind of file, and what is read from them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colossal_llama2.dataset import jsonl_records, lines, table_records
from colossal_llama2.dataset.inputs import find_inputs, split_into_shards
from colossal_llama2.dataset.reading import GiantRecord, Reading, Refusal, read_segment

PLAIN = Reading()
Documents = list[tuple[str, str, str]]


class Files:
    """What tests need to write files of every kind and to read them; functions without a state."""

    @staticmethod
    def read(path: Path, reading: Reading = PLAIN, shard_bytes: int = 1 << 24) -> tuple[Documents, list[Refusal]]:
        """Return (source, target, category) of a file's documents, and what was refused."""
        documents: Documents = []
        refusals: list[Refusal] = []
        files, _ = find_inputs([str(path)])
        for shard in split_into_shards(files, shard_bytes):
            for segment in shard.segments:
                for batch in read_segment(segment, reading, refusals):
                    if isinstance(batch, GiantRecord):
                        source, target = "".join(batch.source_chunks()), "".join(batch.target_chunks())
                        assert (len(source), len(target)) == (batch.source.characters, batch.target.characters)
                        documents.append((source, target, batch.category))
                        continue
                    assert len(batch.texts) == len(batch.source_characters) == len(batch.categories) > 0
                    for text, seam, category in zip(
                        batch.texts, batch.source_characters, batch.categories, strict=True
                    ):
                        documents.append((text[:seam], text[seam:], category))
        return documents, refusals

    @staticmethod
    def jsonl(records: Sequence[dict[str, Any]]) -> bytes:
        return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()

    @staticmethod
    def columns_of(records: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
        names = {name: None for record in records for name in record}
        return {name: [record.get(name) for record in records] for name in names}

    @staticmethod
    def write_parquet(path: Path, records: Sequence[dict[str, Any]], kind: Any = None, per_group: int = 2) -> Path:
        table = pa.table(
            {name: pa.array(values, kind or pa.string()) for name, values in Files.columns_of(records).items()}
        )
        pq.write_table(table, path, row_group_size=per_group)
        return path

    @staticmethod
    def write_arrow(
        path: Path, records: Sequence[dict[str, Any]], kind: Any = None, stream: bool = False, per_batch: int = 2
    ) -> Path:
        arrays = {name: pa.array(values, pa.string()) for name, values in Files.columns_of(records).items()}
        if kind is not None and pa.types.is_dictionary(kind):
            arrays = {
                name: pa.DictionaryArray.from_arrays(
                    array.dictionary_encode().indices, array.dictionary_encode().dictionary.cast(kind.value_type)
                )
                for name, array in arrays.items()
            }
        elif kind is not None:
            arrays = {name: array.cast(kind) for name, array in arrays.items()}
        table = pa.table(arrays)
        new = pa.ipc.new_stream if stream else pa.ipc.new_file
        with new(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=per_batch)
        return path

    @staticmethod
    def write_gz(path: Path, content: bytes) -> Path:
        """Two members, cut anywhere."""
        path.write_bytes(gzip.compress(content[: len(content) // 2]) + gzip.compress(content[len(content) // 2 :]))
        return path

    @staticmethod
    def write_zst(path: Path, content: bytes) -> Path:
        codec = pa.Codec("zstd")
        half = len(content) // 2
        frames = [codec.compress(part).to_pybytes() for part in (content[:half], content[half:]) if part]
        path.write_bytes(b"".join(frames))
        return path

    @staticmethod
    def expected(records: Sequence[dict[str, Any]]) -> Documents:
        return [(r.get("source", ""), r["target"], r.get("category") or "unknown") for r in records]


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "gz": lambda folder, records: Files.write_gz(folder / "f.jsonl.gz", Files.jsonl(records)),
    "zst": lambda folder, records: Files.write_zst(folder / "f.jsonl.zst", Files.jsonl(records)),
    "parquet": lambda folder, records: Files.write_parquet(folder / "f.parquet", records),
    "parquet large": lambda folder, records: Files.write_parquet(folder / "f.parquet", records, pa.large_string(), 5),
    "arrow": lambda folder, records: Files.write_arrow(folder / "f.arrow", records),
    "arrow stream": lambda folder, records: Files.write_arrow(folder / "f.arrow", records, stream=True),
    "arrow view": lambda folder, records: Files.write_arrow(folder / "f.arrow", records, pa.string_view()),
    "arrow large": lambda folder, records: Files.write_arrow(folder / "f.arrow", records, pa.large_string()),
    "arrow words": lambda folder, records: Files.write_arrow(
        folder / "f.arrow", records, pa.dictionary(pa.int32(), pa.string())
    ),
    "arrow view words": lambda folder, records: Files.write_arrow(
        folder / "f.arrow", records, pa.dictionary(pa.int32(), pa.string_view())
    ),
}


@pytest.fixture(scope="session")
def files() -> Any:
    """Give the functions; `writers` write a corpus of any kind."""
    helper: Any = Files()
    helper.writers = WRITERS
    return helper


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is giant be small."""
    monkeypatch.setattr(lines, "BLOCK_BYTES", 64)
    monkeypatch.setattr(jsonl_records, "MAX_LINE_BYTES", 256)
    monkeypatch.setattr(jsonl_records, "PART_BYTES", 50)
    monkeypatch.setattr(jsonl_records, "HELD_CHARACTERS", 10)
    monkeypatch.setattr(table_records, "MAX_LINE_BYTES", 256)
    monkeypatch.setattr(table_records, "_SLICE_BYTES", 100)
    monkeypatch.setattr(table_records, "_CHUNK_BYTES", 7)
