"""The documents of a sample: records, lines, folders, and complaints that name the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.documents import Documents


def test_records_lines_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"source": "q", "target": "a"}\n\n{"text": "t"}\n{"target": ""}\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\nthree")
    (tmp_path / "README.md").write_text("not read")
    documents = Documents([tmp_path, tmp_path / "a.jsonl"])
    expected = ["qa", "t", "one\r\n\r\n", "two\n", "three"]
    assert list(documents) == expected
    assert list(documents) == expected  # as often as asked
    assert [path.name for path in documents.left_aside] == ["README.md"]
    assert list(Documents([tmp_path / "README.md"])) == ["not read"]


def test_complaints(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent: no such"):
        Documents([tmp_path / "absent"])
    with pytest.raises(InputError, match=r"holds no \.jsonl or \.txt"):
        Documents([tmp_path])
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n{"words": 1}\n')
    with pytest.raises(InputError, match=r"x\.jsonl:2: no \"text\""):
        list(Documents([path]))
    path = tmp_path / "x.txt"
    path.write_bytes(b"a\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        list(Documents([path]))
