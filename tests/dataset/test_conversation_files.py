"""Chunks hold every line once, under its number."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossal_llama2.dataset.conversation_files import first_cut, read_chunk, recognise_file, split_files
from colossal_llama2.dataset.inputs import find_inputs
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import iterate_lines


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.sampled_from([b"", b"{}", b"x" * 30, b"\r", b" \t", "你".encode()]), max_size=30),
    ends=st.booleans(),
    bom=st.booleans(),
    size=st.integers(1, 60),
)
def test_every_line_is_read_once(tmp_path: Path, lines: list[bytes], ends: bool, bom: bool, size: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + b"\n".join(lines) + (b"\n" if ends else b""))
    chunks = split_files(find_inputs([str(path)])[0], ["messages"], size)
    found = [line for chunk in chunks for line in read_chunk(chunk)]
    with path.open("rb") as file:
        assert found == list(iterate_lines(file))
    assert [chunk.end for chunk in chunks[:-1]] == [chunk.start for chunk in chunks[1:]]
    assert first_cut(path, size) == (chunks[0].end if chunks else 0)


def test_a_file_without_a_layout_has_no_chunks(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    assert recognise_file(tmp_path / "a.jsonl", False) is None
    assert split_files(find_inputs([str(tmp_path)])[0], [None]) == []


def test_the_first_record_says_the_layout(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"prompt": "x"}\n{"messages": []}')
    assert recognise_file(path, False) == "prompt"
    path.write_text('{\n{"text": "x"}\n{"messages": []}')
    assert recognise_file(path, True) == "messages"
    with pytest.raises(InputError, match=r"a\.jsonl:1: not JSON.*--bad_records skip"):
        recognise_file(path, False)
    path.write_text('{"text": "x"}')
    with pytest.raises(InputError, match=r"a\.jsonl:1: is a record of no layout that is known.*prompt/completion"):
        recognise_file(path, False)
    assert recognise_file(path, True) is None
    with pytest.raises(InputError, match="cannot be read"):
        recognise_file(tmp_path / "missing.jsonl", False)
