"""Lines and blocks of lines."""

from __future__ import annotations

import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.chat.terminal.lines import join_blocks, piped_lines
from colossal_llama2.errors import InputError


@given(blocks=st.lists(st.tuples(st.booleans(), st.text("ab \n", min_size=1, max_size=9)), max_size=5))
def test_a_block_is_one_message(blocks: list[tuple[bool, str]]) -> None:
    lines, expected = [], []
    for fenced, text in blocks:
        if fenced:
            lines += ['"""', *text.split("\n"), '"""']
            expected.append(text.strip("\n"))
        else:
            lines += text.split("\n")
            expected += text.split("\n")
    assert list(join_blocks(lines)) == expected


def test_a_block_may_begin_and_end_on_a_line_of_text() -> None:
    assert list(join_blocks(['"""a', 'b"""', "c", '"""d"""'])) == ["a\nb", "c", "d"]
    with pytest.raises(InputError, match="no end"):
        list(join_blocks(['"""a', "b"]))


def test_a_pipe_is_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(raw: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))

    feed("\ufeff你好\r\n\nlast".encode())
    assert list(piped_lines()) == ["你好", "", "last"]
    feed(b"a\ncaf\xe9\n")
    with pytest.raises(InputError, match="not UTF-8") as caught:
        list(piped_lines())
    assert "standard input:2" in str(caught.value)
