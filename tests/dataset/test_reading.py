"""Reading: the same documents from every kind of file, refused by line or row, whatever the segments."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset import batching, jsonl_records, lines, table_records
from colossal_llama2.dataset.inputs import find_inputs, first_line_number, split_into_shards
from colossal_llama2.dataset.reading import (
    GiantRecord,
    Reading,
    Refusal,
    read_segment,
    records_key,
    segment_digest,
)
from colossal_llama2.errors import InputError

Documents = list[tuple[str, str, str]]
PLAIN = Reading()
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
RECORD = st.fixed_dictionaries(
    {"target": TEXT.filter(bool)}, optional={"source": TEXT, "category": st.sampled_from(["", "a", "字"]), "more": TEXT}
)


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
                for text, seam, category in zip(batch.texts, batch.source_characters, batch.categories, strict=True):
                    documents.append((text[:seam], text[seam:], category))
    return documents, refusals


def jsonl(records: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def columns_of(records: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    names = {name: None for record in records for name in record}
    return {name: [record.get(name) for record in records] for name in names}


def write_parquet(path: Path, records: Sequence[dict[str, Any]], kind: Any = None, per_group: int = 2) -> Path:
    table = pa.table({name: pa.array(values, kind or pa.string()) for name, values in columns_of(records).items()})
    pq.write_table(table, path, row_group_size=per_group)
    return path


def write_arrow(
    path: Path, records: Sequence[dict[str, Any]], kind: Any = None, stream: bool = False, per_batch: int = 2
) -> Path:
    arrays = {name: pa.array(values, pa.string()) for name, values in columns_of(records).items()}
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


def write_gz(path: Path, content: bytes) -> Path:
    """Two members, cut anywhere."""
    path.write_bytes(gzip.compress(content[: len(content) // 2]) + gzip.compress(content[len(content) // 2 :]))
    return path


def write_zst(path: Path, content: bytes) -> Path:
    codec = pa.Codec("zstd")
    half = len(content) // 2
    frames = [codec.compress(part).to_pybytes() for part in (content[:half], content[half:]) if part]
    path.write_bytes(b"".join(frames))
    return path


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "gz": lambda folder, records: write_gz(folder / "f.jsonl.gz", jsonl(records)),
    "zst": lambda folder, records: write_zst(folder / "f.jsonl.zst", jsonl(records)),
    "parquet": lambda folder, records: write_parquet(folder / "f.parquet", records),
    "parquet large": lambda folder, records: write_parquet(folder / "f.parquet", records, pa.large_string(), 5),
    "arrow": lambda folder, records: write_arrow(folder / "f.arrow", records),
    "arrow stream": lambda folder, records: write_arrow(folder / "f.arrow", records, stream=True),
    "arrow view": lambda folder, records: write_arrow(folder / "f.arrow", records, pa.string_view()),
    "arrow large": lambda folder, records: write_arrow(folder / "f.arrow", records, pa.large_string()),
    "arrow words": lambda folder, records: write_arrow(
        folder / "f.arrow", records, pa.dictionary(pa.int32(), pa.string())
    ),
    "arrow view words": lambda folder, records: write_arrow(
        folder / "f.arrow", records, pa.dictionary(pa.int32(), pa.string_view())
    ),
}


def expected_of(records: Sequence[dict[str, Any]]) -> Documents:
    return [(r.get("source", ""), r["target"], r.get("category") or "unknown") for r in records]


@settings(deadline=None, max_examples=25)
@given(records=st.lists(RECORD, min_size=1, max_size=7), shard_bytes=st.sampled_from([1, 60, 1 << 20]))
@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_file_gives_the_same_documents(
    kind: str, records: list[dict[str, Any]], shard_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = WRITERS[kind](Path(folder), records)
        assert read(path, shard_bytes=shard_bytes) == (expected_of(records), [])


BAD_LINES = [
    (b'{"target": "x', "not JSON (Unterminated string starting at at column 12)"),
    (b'[{"target": "x"}]', "holds a JSON list, not an object"),
    (b'{"target": "x", "target": "y"}', 'the name "target" stands twice in one record'),
    (b'{"target": "\\ud800"}', "half a surrogate pair (\\ud800) is not a character"),
    (b'{"target": "x\xff"}', "not UTF-8 (byte 0xff at column 14)"),
    ('{"target": "中文"}'.encode("gbk"), "not UTF-8 (byte 0xd6 at column 13)"),
    (b'{"target": NaN}', "NaN is not JSON"),
    (b'{"target": 1}', '"target" is a JSON int'),
    (b'{"target": ""}', '"target" is empty, so there is nothing to learn'),
    (b'{"target": "x\x00"}', "not JSON (Invalid control character at at column 14)"),
    (b"\xef\xbb\xbf{}", "not JSON (Unexpected UTF-8 BOM (decode using utf-8-sig) at column 1)"),
    (b'{"txt": "x"}', 'no "target" in the record'),
]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("kind", ["f.jsonl", "f.jsonl.gz", "f.jsonl.zst"])
@pytest.mark.parametrize("shard_bytes", [1, 50, 1 << 20])
def test_bad_lines_are_listed_with_their_lines(kind: str, ending: bytes, shard_bytes: int, tmp_path: Path) -> None:
    good = b'{"target": "a\\u0000\\n\\ud83d\\ude00", "category": "b"}'
    content = ending.join([b"\xef\xbb\xbf" + good, b"", *(line for line, _ in BAD_LINES), b" \t", good])
    path = tmp_path / kind
    write = {"f.jsonl": Path.write_bytes, "f.jsonl.gz": write_gz, "f.jsonl.zst": write_zst}[kind]
    write(path, content)
    documents, refusals = read(path, Reading(skip_bad_records=True), shard_bytes)
    assert documents == [("", "a\0\n😀", "b")] * 2
    assert refusals == [Refusal(kind, number, reason) for number, (_, reason) in enumerate(BAD_LINES, 3)]
    with pytest.raises(InputError, match=rf"{kind}:3: not JSON .*, or pass --bad_records skip"):
        read(path, shard_bytes=shard_bytes)


@pytest.mark.parametrize("shard_bytes", [1, 1 << 20])
@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow stream"])
def test_bad_rows_are_listed_with_their_rows(kind: str, shard_bytes: int, tmp_path: Path) -> None:
    target = pa.array([b"a", None, b"", b"x\xff", b"b", b"\xed\xa0\x80", b"c"], pa.binary()).view(pa.string())
    source = pa.array(["s", "s", "s", "s", None, "s", ""])
    table = pa.table({"target": target, "source": source})
    path = tmp_path / f"f.{kind.split()[0]}"
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        with (pa.ipc.new_file if kind == "arrow" else pa.ipc.new_stream)(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    documents, refusals = read(path, Reading(skip_bad_records=True), shard_bytes)
    assert documents == [("s", "a", "unknown"), ("", "b", "unknown"), ("", "c", "unknown")]
    assert [(refusal.line, refusal.reason) for refusal in refusals] == [
        (2, '"target" is null'),
        (3, '"target" is empty, so there is nothing to learn'),
        (4, '"target" is not UTF-8 (byte 0xff at byte 2)'),
        (6, '"target" is not UTF-8 (byte 0xed at byte 1)'),
    ]
    with pytest.raises(InputError, match=rf'f\.{kind.split()[0]}: row 2: "target" is null; .*--bad_records skip'):
        read(path, shard_bytes=shard_bytes)


@pytest.mark.parametrize(
    ("columns", "reading", "complaint"),
    [
        ({"txt": ["x"]}, Reading(), 'no column "target" among txt; name the column with --text_field'),
        ({"target": ["x"], "text": ["y"]}, Reading(), 'both "target" and "text" in the table'),
        ({"source": ["x"], "text": ["y"]}, Reading(), '"source" and "text" in the table, but no "target"'),
        ({"target": [1]}, Reading(), 'the column "target" holds int64, not strings'),
        ({"target": ["x"], "category": [[1]]}, Reading(), 'the column "category" holds list'),
        ({"text": ["x"]}, Reading(text_field="body"), 'no column "body" among text'),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_a_table_without_the_columns_is_refused_as_a_whole(
    columns: dict[str, Any], reading: Reading, complaint: str, skip: bool, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "f.parquet")
    with pytest.raises(InputError) as caught:
        read(tmp_path / "f.parquet", Reading(skip, reading.text_field))
    assert str(caught.value).startswith(f"{tmp_path / 'f.parquet'}: {complaint}")


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
    record: dict[str, Any], reading: Reading, expected: tuple[str, str, str], kind: str, tmp_path: Path
) -> None:
    if kind == "parquet":
        path = write_parquet(tmp_path / "f.parquet", [record])
    else:
        path = tmp_path / "f.jsonl"
        path.write_bytes(jsonl([record]))
    if kind == "parquet" and record == {"text": "t", "source": ""}:
        return  # a column named source may hold anything in other rows
    assert read(path, reading) == ([expected], [])


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
def test_what_could_mean_two_things_is_refused(record: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "f.jsonl").write_bytes(jsonl([{"text": "fine"}, record]))
    with pytest.raises(InputError, match=complaint) as caught:
        read(tmp_path / "f.jsonl")
    assert caught.value.line == 2


def test_categories_can_come_from_files_and_folders(tmp_path: Path) -> None:
    for name in ("data/zh/qa.jsonl", "data/x.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jsonl([{"target": "t", "category": "own"}, {"target": "t", "category": 3}]))
    write_parquet(tmp_path / "data" / "zh" / "p.parquet", [{"text": "t"}] * 2)

    def categories(place: str, category_from: Any) -> list[str]:
        documents, _ = read(tmp_path / place, Reading(category_from=category_from))
        return [category for _, _, category in documents]

    assert categories("data", "file") == ["data/x"] * 2 + ["data/zh/p"] * 2 + ["data/zh/qa"] * 2
    assert categories("data", "folder") == ["data"] * 2 + ["data/zh"] * 4
    assert categories("data/x.jsonl", "folder") == ["data"] * 2
    assert categories("data/x.jsonl", "file") == ["x"] * 2


@pytest.mark.parametrize("kind", ["gz", "zst", "parquet", "arrow", "arrow stream", "arrow large"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "emptied", "flipped"])
def test_a_damaged_file_is_one_line(kind: str, damage: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path, [{"target": f"the fox {number}" * 9} for number in range(400)])
    whole = path.read_bytes()
    half = len(whole) // 2
    if damage == "flipped":
        whole = whole[:9] + bytes(byte ^ 0x55 for byte in whole[9:])
    path.write_bytes({"cut": whole[:half], "garbage": b"once upon a time " * 99, "emptied": b" "}.get(damage, whole))
    with pytest.raises(InputError, match=rf"{path.name}: (is damaged or cut off|cannot be read) "):
        read(path)


def test_batches_are_bounded_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "BATCH_CHARACTERS", 50)
    records = [{"target": "x" * (number % 40 + 1), "source": "ab"} for number in range(100)]
    (tmp_path / "f.jsonl").write_bytes(jsonl(records))
    for path in (tmp_path / "f.jsonl", write_parquet(tmp_path / "f.parquet", records, per_group=30)):
        [shard] = split_into_shards(find_inputs([str(path)])[0])
        batches = list(read_segment(shard.segments[0], Reading(), []))
        sizes = [sum(map(len, batch.texts)) for batch in batches if not isinstance(batch, GiantRecord)]
        assert len(sizes) == len(batches) > 30
        assert all(size <= 50 for size in sizes)
        assert read(path)[0] == expected_of(records)


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


GIANTS: list[dict[str, Any]] = [
    {"target": "first"},
    {"target": '中文😀\n\\"' * 40, "source": "问" * 200, "category": "g"},
    {"target": "between", "source": "x"},
    {"target": "y" * 300, "category": "z" * 30},
    {"target": "w" * 280},
    {"target": "last"},
]


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("shard_bytes", [20, 300, 1 << 20])
@pytest.mark.parametrize("kind", ["jsonl", "gz", "zst"])
@pytest.mark.usefixtures("small_limits")
def test_giant_lines_come_in_parts(kind: str, shard_bytes: int, escaped: bool, tmp_path: Path) -> None:
    bad = b'{"target": "' + b"x" * 400 + b'", "n": 1, "n": 2}\n'
    content = b"".join(json.dumps(record, ensure_ascii=escaped).encode() + b"\r\n" for record in GIANTS)
    content = b"\xef\xbb\xbf" + b" " * 400 + b"\n" + bad + content + b'{"target": "' + b"v" * 500 + b'"}'
    path = tmp_path / ("f.jsonl" if kind == "jsonl" else f"f.jsonl.{kind}")
    {"jsonl": Path.write_bytes, "gz": write_gz, "zst": write_zst}[kind](path, content)
    documents, refusals = read(path, Reading(skip_bad_records=True), shard_bytes)
    assert documents == [*expected_of(GIANTS), ("", "v" * 500, "unknown")]
    assert refusals == [Refusal(path.name, 2, 'the name "n" stands twice in one record')]


@pytest.mark.usefixtures("small_limits")
def test_a_giant_line_may_begin_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    record = {"source": "s" * 100, "target": "t" * 300}
    (tmp_path / "f.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl([record]))
    assert read(tmp_path / "f.jsonl") == (expected_of([record]), [])


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind not in ("gz", "zst")])
@pytest.mark.usefixtures("small_limits")
def test_giant_rows_come_in_parts(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path, GIANTS)
    assert read(path) == (expected_of(GIANTS), [])
    [shard] = split_into_shards(find_inputs([str(path)])[0])
    found = list(read_segment(shard.segments[0], Reading(), []))
    assert sum(isinstance(batch, GiantRecord) for batch in found) == 3


@pytest.mark.usefixtures("small_limits")
def test_a_giant_row_that_is_no_text_is_refused(tmp_path: Path) -> None:
    target = pa.array([b"x" * 300 + b"\xff", b"fine", b"", None], pa.binary()).view(pa.string())
    source = pa.array([None, None, "s" * 400, "s" * 400])
    pq.write_table(pa.table({"target": target, "source": source}), tmp_path / "f.parquet")
    documents, refusals = read(tmp_path / "f.parquet", Reading(skip_bad_records=True))
    assert documents == [("", "fine", "unknown")]
    assert [(refusal.line, refusal.reason) for refusal in refusals] == [
        (1, '"target" is not UTF-8 (byte 0xff at byte 301)'),
        (3, '"target" is empty, so there is nothing to learn'),
        (4, '"target" is null'),
    ]


def test_a_changed_giant_line_is_noticed(tmp_path: Path, small_limits: None) -> None:
    (tmp_path / "f.jsonl").write_bytes(jsonl([{"target": "x" * 500}]))
    [shard] = split_into_shards(find_inputs([str(tmp_path)])[0])
    [giant] = read_segment(shard.segments[0], Reading(), [])
    assert isinstance(giant, GiantRecord)
    assert ["".join(giant.target_chunks()) for _ in range(2)] == ["x" * 500] * 2
    (tmp_path / "f.jsonl").write_bytes(jsonl([{"target": "x" * 300}]))
    with pytest.raises(InputError, match="was changed while it was read"):
        "".join(giant.target_chunks())


def test_digests_follow_the_bytes_and_nothing_else(tmp_path: Path) -> None:
    line = jsonl([{"target": "the"}])

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
def test_digests_of_groups_follow_their_content(kind: str, tmp_path: Path) -> None:
    def digests(records: list[dict[str, Any]]) -> list[bytes]:
        path = WRITERS[kind](tmp_path, records)
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


def test_the_key_holds_all_that_decides_the_documents(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(jsonl([{"target": "the"}]))
    [shard] = split_into_shards(find_inputs([str(tmp_path)])[0])
    a, b = shard.segments
    assert records_key(a, Reading()) == records_key(b, Reading())
    readings = [Reading(), Reading(True), Reading(text_field="target"), Reading(category_from="file")]
    assert len({records_key(segment, reading) for segment in (a, b) for reading in readings}) == 5


def test_the_first_line_or_row_of_a_segment_is_known(tmp_path: Path) -> None:
    records = [{"target": f"the fox {number}"} for number in range(9)]
    for kind in ("parquet", "arrow", "arrow stream"):
        path = WRITERS[kind](tmp_path, records)
        shards = split_into_shards(find_inputs([str(path)])[0], 1)
        assert [first_line_number(shard.segments[0]) for shard in shards] == [1, 3, 5, 7, 9]


def test_a_folder_of_datasets_is_read(tmp_path: Path) -> None:
    import datasets

    records = [{"text": f"the fox {number}"} for number in range(5)]
    datasets.Dataset.from_list(records).save_to_disk(str(tmp_path / "saved"))
    files, ignored = find_inputs([str(tmp_path / "saved")])
    assert [file.kind for file in files] == ["arrow"]
    assert sorted(ignored) == ["saved/dataset_info.json", "saved/state.json"]
    assert read(tmp_path / "saved")[0] == [("", record["text"], "unknown") for record in records]
