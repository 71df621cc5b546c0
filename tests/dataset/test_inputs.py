"""Inputs: every file once, and shards that hold every line once whatever their size."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.dataset.inputs import InputFile, find_inputs, first_line_number, read_shard, split_into_shards
from colossal_llama2.errors import InputError

CONTENTS = st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b" ", b"a", b"\xef\xbb\xbf", b"{}", "字".encode()])).map(
    b"".join
)


def make(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@given(content=CONTENTS, shard_bytes=st.integers(1, 40))
def test_any_shard_size_gives_the_same_lines_with_the_same_numbers(content: bytes, shard_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.jsonl")
        path.write_bytes(content)
        shards = split_into_shards([InputFile(path, "f", len(content))], shard_bytes)
        lines = [line for shard in shards for line in read_shard(shard)]
        assert lines == io.BytesIO(content).readlines()
        before = 0
        for shard in shards:
            own = list(read_shard(shard))
            if own:
                assert first_line_number(shard) == before + 1
            before += len(own)


def test_shards_cover_a_file_without_gaps(tmp_path: Path) -> None:
    files = [InputFile(tmp_path / "a", "a", 10), InputFile(tmp_path / "empty", "empty", 0)]
    shards = split_into_shards(files, 4)
    assert [(shard.file.name, shard.start, shard.end) for shard in shards] == [("a", 0, 4), ("a", 4, 8), ("a", 8, 10)]


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
        ([tmp_path / "void"], r"holds no \.jsonl file"),
        ([text], r"holds no \.jsonl file"),
        ([path, tmp_path / "data"], "named twice"),
    ]:
        with pytest.raises(InputError, match=complaint):
            find_inputs([str(entry) for entry in entries])


def test_a_file_that_vanishes_is_an_input_error(tmp_path: Path) -> None:
    shard = split_into_shards([InputFile(tmp_path / "gone.jsonl", "gone", 5)])[0]
    with pytest.raises(InputError, match=r"gone\.jsonl: cannot be read"):
        list(read_shard(shard))
