"""What was answered is on the disk at once, comes back as it was, and never answers another question."""

from __future__ import annotations

from pathlib import Path

import pytest

from colossal_llama2.chat.answer_journal import AnswerJournal, GaveUp, Reply, digest_of, open_journal, read_outputs
from colossal_llama2.errors import InputError

REPLY = Reply("九月 \u2028 \r\n\x00", "stop", False, 3, None)


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.journal"
    with open_journal(path, {"seed": 1, "turns": (1, 2)}) as journal:
        journal.add("one#0", "d1", REPLY)
        journal.add("two#0", "d2", GaveUp("timeout"))
        journal.add_failure("two#0", "timeout")
        journal.add_output("f00d")
        assert journal.find("one#0", "d1") == REPLY
        assert len(path.read_bytes().splitlines()) == 5, "every line is on the disk while the journal is open"
    with open_journal(path, {"seed": 1, "turns": (1, 2)}) as journal:
        assert journal.find("one#0", "d1") == REPLY
        assert journal.find("two#0", "d2") == GaveUp("timeout")
        assert journal.find("three#0", "d3") is None
        assert journal.failures == ["timeout"]
        assert list(journal.replies()) == [REPLY]
    assert read_outputs(path) == {"f00d"}
    assert read_outputs(tmp_path / "none") == set()


@pytest.mark.parametrize("keep", range(1, 40, 3))
def test_half_a_line_at_the_end_is_cut_off(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.journal"
    with open_journal(path, {}) as journal:
        journal.add("one#0", "d1", REPLY)
        whole = path.stat().st_size
        journal.add("two#0", "d2", REPLY)
    with path.open("r+b") as file:
        file.truncate(whole + keep)
    with open_journal(path, {}) as journal:
        assert journal.find("one#0", "d1") == REPLY
        assert journal.find("two#0", "d2") is None
        journal.add("two#0", "d2", REPLY)
    with open_journal(path, {}) as journal:
        assert journal.find("two#0", "d2") == REPLY


def test_a_journal_cut_in_its_first_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(b'{"version": 1, "ma')
    with open_journal(path, {}) as journal:
        journal.add("one#0", "d1", REPLY)
    with open_journal(path, {}) as journal:
        assert journal.find("one#0", "d1") == REPLY


def test_another_question_under_the_same_name_is_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path / "a.journal", {}) as journal:
        journal.add("one#0", "d1", REPLY)
        with pytest.raises(InputError, match="holds another request as one#0"):
            journal.find("one#0", "d2")


def test_a_journal_of_other_settings_is_refused_and_says_which(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with open_journal(path, {"seed": 1, "language": "English"}):
        pass
    with (
        pytest.raises(InputError, match=r"begun with another language, turns; .*paid for"),
        open_journal(path, {"seed": 1, "language": "Chinese", "turns": 3}),
    ):
        pass


@pytest.mark.parametrize("line", ['{"version": 9, "made_by": {}}', '{"something": 1}'])
def test_another_version_or_file_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.journal"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="no journal of version 1"), open_journal(path, {}):
        pass
    assert path.read_text(encoding="utf-8") == line + "\n", "what is not ours stays as it is"


@pytest.mark.parametrize("line", ['{"name": "x"}', '{"name": "x", "digest": "d", "reply": {"said": 1}}'])
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.journal"
    with open_journal(path, {}):
        pass
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"a\.journal:2: is no line"), open_journal(path, {}):
        pass


def test_two_runs_do_not_write_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with open_journal(path, {}), pytest.raises(InputError, match="another run"), open_journal(path, {}):
        pass
    with open_journal(path, {}) as journal:
        assert isinstance(journal, AnswerJournal)


def test_a_digest_depends_on_what_is_asked_alone() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
