from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.align.reward_function import call_reward_function, load_reward_function
from colossal_llama2.errors import InputError

FILE = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Price:
    of_a_letter: float = 1.0

def paid(prompts, answers, records):
    return [Price().of_a_letter * len(answer) for answer in answers]
"""


def test_a_function_is_found_in_a_file_or_a_module(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE, encoding="utf-8")
    function = load_reward_function(f"{tmp_path / 'mine.py'}:paid")
    assert call_reward_function(function, ["p", "p"], ["a", "bcd"], [{}, {}]) == [1.0, 3.0]
    assert load_reward_function("os.path:join") is not None


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("nothing", "names no function"),
        ("no/such/file.py:paid", "does not exist"),
        ("no_such_module_here:paid", "no module"),
        ("os.path:no_such_name", "no function"),
    ],
)
def test_what_cannot_be_found_is_refused(named: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_reward_function(named)


@pytest.mark.parametrize(
    ("returned", "said"),
    [([1.0], "1 rewards for 2"), ([1.0, float("nan")], "nan"), (None, "no list"), (["a", "b"], "no list")],
)
def test_what_is_not_a_number_an_answer_is_refused(returned: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        call_reward_function(lambda **given: returned, ["p", "p"], ["a", "b"], [{}, {}])
