"""Reading: the same documents from every kind of file, and keys that follow what decides them."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset import batching
from colossal_llama2.dataset.inputs import find_inputs, split_into_shards
from colossal_llama2.dataset.reading import GiantRecord, Reading, read_segment, records_key, segment_digest
from colossal_llama2.errors import InputError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
RECORD = st.fixed_dictionaries(
    {"target": TEXT.filter(bool)}, optional={"source": TEXT, "category": st.sampled_from(["", "a", "字"]), "more": TEXT}
)
KINDS = [
    "gz",
    "zst",
    *[
        "parquet",
        "parquet large",
        "arrow",
        "arrow stream",
        "arrow view",
        "arrow large",
        "arrow words",
        "arrow view words",
    ],
]


@settings(deadline=None, max_examples=25)
@given(records=st.lists(RECORD, min_size=1, max_size=7), shard_bytes=st.sampled_from([1, 60, 1 << 20]))
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_documents(
    kind: str, records: list[dict[str, Any]], shard_bytes: int, files: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = files.writers[kind](Path(folder), records)
        assert files.read(path, shard_bytes=shard_bytes) == (files.expected(records), [])


FIELDS = [
    ({"text": "t"}, Reading(), ("", "t", "unknown")),
    ({"text": "t", "source": ""}, Reading(), ("", "t", "unknown")),
    ({"text": "t", "target": "x", "source": "s"}, Reading(text_field="text"), ("", "t", "unknown")),
    ({"text": "t", "target": "x", "source": "s"}, Reading(target_field="target"), ("s", "x", "unknown")),
    ({"q": "s", "a": "x", "kind": "k"}, Reading(False, None, "q", "a", "kind"), ("s", "x", "k")),
    ({"body": "x"}, Reading(text_field="body", default_category="d"), ("", "x", "d")),
    ({"text": "t", "source": "s"}, Reading(source_field="source", target_field="text"), ("s", "t", "unknown")),
]


@pytest.mark.parametrize(("record", "reading", "expected"), FIELDS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_fields_can_be_named(
    record: dict[str, Any], reading: Reading, expected: tuple[str, str, str], kind: str, tmp_path: Path, files: Any
) -> None:
    if kind == "parquet":
        path = files.write_parquet(tmp_path / "f.parquet", [record])
    else:
        path = tmp_path / "f.jsonl"
        path.write_bytes(files.jsonl([record]))
    if kind == "parquet" and record == {"text": "t", "source": ""}:
        return  # a column named source may hold anything in other rows
    assert files.read(path, reading) == ([expected], [])


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (
            {"text": "t", "target": "x"},
            r'both "target" and "text" in the record; .*--target_field target or --text_',
        ),
        (
            {"text": "t", "source": "s"},
            r'"source" and "text" in the record, but no "target"; .*--text_field text al',
        ),
        ({"text": "t", "source": None}, r'"source" and "text" in the record'),
    ],
)
def test_what_could_mean_two_things_is_refused(
    record: dict[str, Any], complaint: str, tmp_path: Path, files: Any
) -> None:
    (tmp_path / "f.jsonl").write_bytes(files.jsonl([{"text": "fine"}, record]))
    with pytest.raises(InputError, match=complaint) as caught:
        files.read(tmp_path / "f.jsonl")
    assert caught.value.line == 2


def test_categories_can_come_from_files_and_folders(tmp_path: Path, files: Any) -> None:
    for name in ("data/zh/qa.jsonl", "data/x.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(files.jsonl([{"target": "t", "category": "own"}, {"target": "t", "category": 3}]))
    files.write_parquet(tmp_path / "data" / "zh" / "p.parquet", [{"text": "t"}] * 2)

    def categories(place: str, category_from: Any) -> list[str]:
        documents, _ = files.read(tmp_path / place, Reading(category_from=category_from))
        return [category for _, _, category in documents]

    assert categories("data", "file") == ["data/x"] * 2 + ["data/zh/p"] * 2 + ["data/zh/qa"] * 2
    assert categories("data", "folder") == ["data"] * 2 + ["data/zh"] * 4
    assert categories("data/x.jsonl", "folder") == ["data"] * 2
    assert categories("data/x.jsonl", "file") == ["x"] * 2


@pytest.mark.parametrize("kind", ["gz", "zst", "parquet", "arrow", "arrow stream", "arrow large"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "emptied", "flipped"])
def test_a_damaged_file_is_one_line(kind: str, damage: str, tmp_path: Path, files: Any) -> None:
    path = files.writers[kind](tmp_path, [{"target": f"the fox {number}" * 9} for number in range(400)])
    whole = path.read_bytes()
    half = len(whole) // 2
    if damage == "flipped":
        whole = whole[:9] + bytes(byte ^ 0x55 for byte in whole[9:])
    path.write_bytes({"cut": whole[:half], "garbage": b"once upon a time " * 99, "emptied": b" "}.get(damage, whole))
    with pytest.raises(InputError, match=rf"{path.name}: (is damaged or cut off|cannot be read) "):
        files.read(path)


def test_batches_are_bounded_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Any) -> None:
    monkeypatch.setattr(batching, "BATCH_CHARACTERS", 50)
    records = [{"target": "x" * (number % 40 + 1), "source": "ab"} for number in range(100)]
    (tmp_path / "f.jsonl").write_bytes(files.jsonl(records))
    for path in (tmp_path / "f.jsonl", files.write_parquet(tmp_path / "f.parquet", records, per_group=30)):
        [shard] = split_into_shards(find_inputs([str(path)])[0])
        batches = list(read_segment(shard.segments[0], Reading(), []))
        sizes = [sum(map(len, batch.texts)) for batch in batches if not isinstance(batch, GiantRecord)]
        assert len(sizes) == len(batches) > 30
        assert all(size <= 50 for size in sizes)
        assert files.read(path)[0] == files.expected(records)


def test_digests_follow_the_bytes_and_nothing_else(tmp_path: Path, files: Any) -> None:
    line = files.jsonl([{"target": "the"}])

    def digests(name: str, content: bytes, shard_bytes: int) -> list[bytes]:
        (tmp_path / name).write_bytes(content)
        shards = split_into_shards(find_inputs([str(tmp_path / name)])[0], shard_bytes)
        return [segment_digest(segment) for shard in shards for segment in shard.segments]

    first, second, third = digests("a.jsonl", line * 3, len(line))
    assert second == third != first  # a byte order mark would count at the beginning alone
    assert digests("b.jsonl", line * 3, len(line)) == [first, second, third]
    assert digests("c.jsonl", line + line[:-3], len(line))[1] != second
    [packed] = digests("d.jsonl.gz", gzip.compress(line * 3, mtime=0), 10)
    assert digests("e.jsonl.gz", gzip.compress(line * 2, mtime=0), 10) != [packed]


@pytest.mark.parametrize("kind", ["parquet", "parquet large", "arrow", "arrow stream", "arrow words"])
def test_digests_of_groups_follow_their_content(kind: str, tmp_path: Path, files: Any) -> None:
    def digests(records: list[dict[str, Any]]) -> list[bytes]:
        path = files.writers[kind](tmp_path, records)
        shards = split_into_shards(find_inputs([str(path)])[0], 1)
        return [segment_digest(shard.segments[0]) for shard in shards]

    a, b = ({"target": "the fox", "category": name} for name in "ab")
    per_group = 5 if kind == "parquet large" else 2
    groups = [[a] * per_group, [b] * per_group, [a] * per_group]
    first, second, third = digests([record for group in groups for record in group])
    assert first != second
    assert digests([record for group in groups for record in group]) == [first, second, third]
    if kind.startswith("parquet"):  # wherever it lies; Arrow's buffers may carry bits of their neighbours
        assert first == third
        assert digests([*groups[1], *groups[0]]) == [second, first]
    assert digests([{"text": "the fox", "category": "a"}] * per_group) != [first]


def test_the_key_holds_all_that_decides_the_documents(tmp_path: Path, files: Any) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(files.jsonl([{"target": "the"}]))
    [shard] = split_into_shards(find_inputs([str(tmp_path)])[0])
    a, b = shard.segments
    assert records_key(a, Reading()) == records_key(b, Reading())
    readings = [Reading(), Reading(True), Reading(text_field="target"), Reading(category_from="file")]
    assert len({records_key(segment, reading) for segment in (a, b) for reading in readings}) == 5
