"""Lines of many ranks through one pipe: none is lost, mixed up or put under another rank's name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.engine.nodes import frames

TEXT = st.text(st.characters(blacklist_characters="\n\x1e", blacklist_categories=["Cs"]), max_size=12)


@given(st.lists(TEXT, max_size=8), TEXT, st.data())
def test_lines_are_cut_wherever_the_pieces_end(lines: list[str], rest: str, data: st.DataObject) -> None:
    stream = ("".join(line + "\n" for line in lines) + rest).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    reader = frames.Lines()
    found: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert [line.decode() for line in found] == lines
    assert reader.rest().decode() == rest


@given(st.lists(st.tuples(st.integers(0, 3), TEXT.filter(bool)), min_size=1, max_size=8), st.data())
def test_pieces_of_ranks_come_together(said: list[tuple[int, str]], data: st.DataObject) -> None:
    """Every rank's line arrives as text and, in a later piece, its line end, as python -u writes it."""
    stream = ""
    waiting: dict[int, str] = {}
    expected: list[tuple[int, str]] = []
    for rank, text in said:
        if rank in waiting:
            stream += f"\x1e{rank}\x1e\n"
            expected.append((rank, waiting.pop(rank)))
        stream += f"\x1e{rank}\x1e{text}"
        waiting[rank] = text
        if data.draw(st.booleans()):
            stream += f"\x1e{rank}\x1e\n"
            expected.append((rank, waiting.pop(rank)))
    *whole, last = stream.split("\n")
    reader = frames.RankLines()
    found = [pair for line in whole for pair in reader.feed(line.encode())]
    left = [pair for pair in [*reader.feed(last.encode()), *reader.rest()] if pair[1]]
    assert found == expected
    assert sorted(left) == sorted(waiting.items())


def test_lines_of_torchrun_belong_to_no_rank() -> None:
    reader = frames.RankLines()
    assert list(reader.feed(b"W1121 a warning")) == [(None, "W1121 a warning")]
    assert list(reader.feed(b"\x1e11\x1estep 1")) == [(11, "step 1")]
    assert list(reader.feed(b"\x1e0\x1e")) == [(0, "")]
    assert list(reader.feed(b"")) == [(None, "")]
    assert list(reader.feed(b"\xff")) == [(None, "\N{REPLACEMENT CHARACTER}")]


def test_a_greeting_is_no_frame() -> None:
    assert frames.decode(frames.encode({"text": "a\nb\u2028"})) == {"text": "a\nb\u2028"}
    assert [frames.decode(line) for line in (b"Welcome", b'"x"', b"[1]", b"\xff")] == [None] * 4
