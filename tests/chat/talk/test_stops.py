"""However a text is cut into parts, what comes out is the text up to the first stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.chat.talk.stops import StopCutter


def cut_by_hand(text: str, stops: list[str]) -> str:
    """Read the text character by character until one of them ends there."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


TEXT = st.text("ab\n人", max_size=14)
STOPS = st.lists(st.text("ab\n人", min_size=1, max_size=4), max_size=3)


@given(text=TEXT, stops=STOPS, data=st.data())
def test_parts_join_to_the_text_up_to_the_first_stop_string(text: str, stops: list[str], data: st.DataObject) -> None:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    cutter, parts = StopCutter(stops), []
    for begin, end in zip([0, *places], [*places, len(text)], strict=True):
        parts.append(cutter.put(text[begin:end]))
        so_far = "".join(parts)
        if cutter.found is None:  # no more is held back than may be the beginning of a stop string
            held = text[len(so_far) : end]
            assert held == "" or any(stop.startswith(held) for stop in stops)
    parts.append(cutter.end())
    assert "".join(parts) == cut_by_hand(text, stops)
    assert (cutter.found is not None) == any(stop in text for stop in stops)
    assert cutter.end() == ""


@pytest.mark.parametrize(
    ("stops", "parts", "expected"),
    [
        (["\n\nHuman:"], ["Yes.", "\n", "\nHu", "man: and"], ["Yes.", "", "", ""]),
        (["\n\nHuman:"], ["Yes.\n", "\nHum", "bug"], ["Yes.", "", "\n\nHumbug"]),
        (["aab"], ["aaa", "ab"], ["a", "a"]),
    ],
)
def test_what_may_be_its_beginning_is_held_back(stops: list[str], parts: list[str], expected: list[str]) -> None:
    cutter = StopCutter(stops)
    assert [cutter.put(part) for part in parts] == expected


def test_nothing_comes_behind_a_stop_string() -> None:
    cutter = StopCutter(["b", "abc"])
    assert cutter.put("xab") == "xa"
    assert cutter.found == "b"
    assert cutter.put("c and more") + cutter.end() == ""
