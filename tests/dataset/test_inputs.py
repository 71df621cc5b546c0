"""Inputs: every file once, and shards that hold every line once whatever their size."""

from __future__ import annotations

import io
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.dataset.inputs import InputFile, Segment, find_inputs, first_line_number, split_into_shards
from colossal_llama2.dataset.lines import LongLine, line_bounds, read_lines
from colossal_llama2.dataset.reading import read_segment
from colossal_llama2.dataset.records import Reading
from colossal_llama2.errors import InputError

CONTENTS = st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b" ", b"a", b"\xef\xbb\xbf", b"{}", "字".encode()])).map(
    b"".join
)


def lines_of(content: bytes, start: int, end: int, max_bytes: int = 1 << 20) -> list[bytes]:
    stream, lines = io.BytesIO(content), []
    start, end = line_bounds(stream, start, end, len(content))
    stream.seek(start)
    for block in read_lines(stream, start, end, max_bytes):
        if isinstance(block, LongLine):
            assert content[: block.start].endswith(b"\n") or block.start == 0
            line = b"".join(block.blocks)
            lines.append(line + content[block.start + len(line) :][:1])
        else:
            lines += io.BytesIO(block).readlines()
    return lines


def make(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@given(content=CONTENTS, shard_bytes=st.integers(1, 40))
def test_any_shard_size_gives_the_same_lines_with_the_same_numbers(content: bytes, shard_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.jsonl")
        path.write_bytes(content)
        shards = split_into_shards([InputFile(folder, "x/f.jsonl", len(content), "jsonl")], shard_bytes)
        segments = [segment for shard in shards for segment in shard.segments]
        assert [segment.start for segment in segments[1:]] == [segment.end for segment in segments[:-1]]
        lines: list[bytes] = []
        for segment in segments:
            assert first_line_number(segment) == len(lines) + 1
            lines += lines_of(content, segment.start, segment.end)
        assert lines == io.BytesIO(content).readlines()


@given(content=CONTENTS, cuts=st.lists(st.integers(0, 40), max_size=5))
def test_lines_belong_to_the_range_they_begin_in(content: bytes, cuts: list[int]) -> None:
    """Ranges need not begin where lines do."""
    bounds = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    read = []
    for start, end in itertools.pairwise(bounds):
        read += lines_of(content, start, end)
    assert read == io.BytesIO(content).readlines()


def test_a_long_line_is_one_segment_and_small_files_share_a_shard(tmp_path: Path) -> None:
    contents = {"a": b"x\n" * 3, "b": b"y\n", "c": b"z\n" * 2 + b"w" * 50 + b"\nv\n", "empty": b"", "e": b"u"}
    files = []
    for name, content in contents.items():
        (tmp_path / f"{name}.jsonl").write_bytes(content)
        files.append(InputFile(str(tmp_path), f"in/{name}.jsonl", len(content), "jsonl"))
    shards = split_into_shards(files, 8)
    found = [[(s.file.name[3:-6], s.start, s.end) for s in shard.segments] for shard in shards]
    assert found == [[("a", 0, 6), ("b", 0, 2)], [("c", 0, 55)], [("c", 55, 57), ("e", 0, 1)]]


def test_a_shard_is_of_a_limited_number_of_files() -> None:
    files = [InputFile("in", f"in/{number}.jsonl", 1, "jsonl") for number in range(10_000)]
    assert [len(shard.segments) for shard in split_into_shards(files)] == [4096, 4096, 1808]


def test_files_and_segments_are_small() -> None:
    root = "folder"
    file = InputFile(root, "folder/name.jsonl", 1000, "jsonl")
    parts = [file, file.name, file.num_bytes, Segment(file, 0, file.num_bytes)]
    assert sum(map(sys.getsizeof, parts)) + 2 * 16 < 300  # the two dataclasses carry 16 bytes of the collector's
    assert not hasattr(file, "__dict__")


def test_order_and_names_depend_on_names_alone(tmp_path: Path) -> None:
    for place in ("one", "another"):
        for name in ("z.jsonl", "a/b.jsonl", "a/note.txt", ".hidden.jsonl", "B.jsonl"):
            make(tmp_path / place / "data" / name)
    found = [find_inputs([str(tmp_path / place / "data")]) for place in ("one", "another")]
    names = [[file.name for file in files] for files, _ in found]
    assert names[0] == names[1] == ["data/B.jsonl", "data/a/b.jsonl", "data/z.jsonl"]
    assert found[0][1] == ["data/.hidden.jsonl", "data/a/note.txt"]


def test_inputs_of_one_name_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("one", "two", "three"):
        make(tmp_path / place / "data" / "x.jsonl")
    files, _ = find_inputs([str(tmp_path / place / "data") for place in ("one", "two", "three")])
    assert [file.name for file in files] == ["data/x.jsonl", "data#2/x.jsonl", "data#3/x.jsonl"]
    monkeypatch.chdir(tmp_path / "one" / "data")
    assert [file.name for file in find_inputs(["."])[0]] == ["data/x.jsonl"]


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere" / "far.jsonl")
    make(tmp_path / "data" / "near.jsonl")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    files, _ = find_inputs([str(tmp_path / "data")])
    assert [file.name for file in files] == ["data/link/far.jsonl", "data/near.jsonl"]


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "data" / "a.jsonl")
    (tmp_path / "data" / "b.jsonl").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"b\.jsonl: cannot be read"):
        find_inputs([str(tmp_path / "data")])


def test_a_folder_that_cannot_be_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "data" / "a.jsonl")
    make(tmp_path / "data" / "closed" / "b.jsonl")
    scandir = os.scandir

    def guarded(path: Any) -> Iterator[Any]:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(InputError, match="closed: cannot be read"):
        find_inputs([str(tmp_path / "data")])


def test_missing_empty_and_repeated_inputs_are_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "data" / "a.jsonl")
    (tmp_path / "void").mkdir()
    text = make(tmp_path / "plain.txt")
    for entries, complaint in [
        ([tmp_path / "gone"], "does not exist"),
        ([tmp_path / "void"], r"holds no file of a kind that can be read \(\.jsonl, "),
        ([text], r"holds no file of a kind"),
        ([tmp_path / "data" / "*.txt"], r"\*\.txt: holds no file of a kind"),
        ([tmp_path / "gone" / "*.jsonl"], r"does not exist"),
        ([path, tmp_path / "data"], "named twice"),
    ]:
        with pytest.raises(InputError, match=complaint):
            find_inputs([str(entry) for entry in entries])


def test_a_file_that_vanishes_is_an_input_error(tmp_path: Path) -> None:
    file = InputFile(str(tmp_path / "gone.jsonl"), "gone.jsonl", 50, "jsonl")
    [shard] = split_into_shards([file])
    with pytest.raises(InputError, match=r"gone\.jsonl: cannot be read"):
        list(read_segment(shard.segments[0], Reading(), []))
    with pytest.raises(InputError, match=r"gone\.jsonl: cannot be read"):
        split_into_shards([file], 10)


PATTERNS = [
    ("*.jsonl", ["a.jsonl", "b.jsonl"]),
    ("?.jsonl", ["a.jsonl", "b.jsonl"]),
    ("[ac].jsonl", ["a.jsonl"]),
    ("**/*.jsonl", ["a.jsonl", "b.jsonl", "en/x/d.jsonl", "zh/a.jsonl", "zh1/c.jsonl"]),
    ("**", ["a.jsonl", "b.jsonl", "en/x/d.jsonl", "zh/a.jsonl", "zh1/c.jsonl"]),
    ("**/**/a.jsonl", ["a.jsonl", "zh/a.jsonl"]),
    ("z*", ["zh/a.jsonl", "zh1/c.jsonl"]),
    ("*/a.jsonl", ["zh/a.jsonl"]),
    ("e*/**/d.jsonl", ["en/x/d.jsonl"]),
]


@pytest.mark.parametrize(("pattern", "expected"), PATTERNS)
def test_patterns_name_files_below_the_folder_of_their_first_wildcard(
    pattern: str, expected: list[str], tmp_path: Path
) -> None:
    for name in ("b.jsonl", "a.jsonl", "zh/a.jsonl", "zh1/c.jsonl", "en/x/d.jsonl", "en/note.txt", ".h.jsonl"):
        make(tmp_path / "data" / name)
    files, ignored = find_inputs([str(tmp_path / "data" / pattern)])
    assert [file.name for file in files] == [f"data/{name}" for name in expected]
    assert all(file.path.read_text() == "x" for file in files)
    assert set(ignored) <= {"data/en/note.txt", "data/.h.jsonl"}


def test_a_pattern_from_here_and_two_patterns_of_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        make(tmp_path / "data" / name)
    monkeypatch.chdir(tmp_path / "data")
    assert [file.name for file in find_inputs(["*.jsonl"])[0]] == ["data/a.jsonl", "data/b.jsonl"]
    assert [file.name for file in find_inputs(["b*", "a*"])[0]] == ["data/b.jsonl", "data/a.jsonl"]
    make(tmp_path / "data" / "[b].jsonl")  # a file of that very name is meant
    assert [file.name for file in find_inputs(["[b].jsonl"])[0]] == ["[b].jsonl"]


def test_every_kind_is_known_by_its_suffix(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet", "e.arrow", "f.json", "g.gz", "jsonl"):
        make(tmp_path / "data" / name)
    files, ignored = find_inputs([str(tmp_path / "data")])
    assert [file.kind for file in files] == ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow"]
    assert ignored == ["data/f.json", "data/g.gz", "data/jsonl"]


def test_a_hard_link_is_a_file_of_its_own(tmp_path: Path) -> None:
    path = make(tmp_path / "data" / "a.jsonl")
    (tmp_path / "data" / "b.jsonl").hardlink_to(path)
    assert len(find_inputs([str(tmp_path / "data")])[0]) == 2
    (tmp_path / "data" / "c.jsonl").symlink_to(path)
    with pytest.raises(InputError, match="named twice"):
        find_inputs([str(tmp_path / "data")])
