"""What each line does to a talk, with one model and with several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.chat.talk.conversation import Conversation
from colossal_llama2.chat.terminal.screen import Screen
from colossal_llama2.chat.terminal.session import COMMANDS, Seat, Session
from colossal_llama2.errors import InputError


def table(*speakers: Any, is_interactive: bool = False, system: str = "") -> Session:
    return Session([Seat(one, Conversation(system)) for one in speakers], Screen(), is_interactive)


def contents(session: Session, seat: int = 0) -> list[str]:
    return [turn.content for turn in session.seats[seat].conversation.turns]


def test_each_message_is_answered_to_all_before_it(fake_speaker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    speaker = fake_speaker()
    session = table(speaker, system="be kind")
    assert session.take("hello")
    assert session.take("   ")
    assert session.take("again")
    assert capsys.readouterr().out == "fake saw 2\nfake saw 4\n"
    assert [attempt for _, attempt in speaker.asked] == [0, 1]
    assert not session.take("/quit")


def test_a_retry_asks_the_same_with_other_draws(fake_speaker: Any) -> None:
    speaker = fake_speaker(says=[("one", "end_token"), ("two", "end_token")])
    session = table(speaker)
    session.take("q")
    session.take("/retry")
    assert contents(session) == ["q", "two"]
    (first, a), (second, b) = speaker.asked
    assert first == second
    assert a != b


def test_undo_reset_and_system(fake_speaker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    session = table(fake_speaker())
    for line in ("a", "b", "/undo", "/system be brief"):
        session.take(line)
    assert contents(session) == ["be brief", "a", "fake saw 1"]
    session.take("/reset")
    assert contents(session) == ["be brief"]
    session.take("/system")
    assert contents(session) == []
    assert "taken back: b" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["/nonsense", "/retry", "/undo", "/save", "/load", "/reset now", "/save {dir}/a", "/load {dir}/a"]
)
def test_what_cannot_be_done_is_told_or_ends_a_script(
    line: str, fake_speaker: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = line.format(dir=tmp_path)
    with pytest.raises(InputError):
        table(fake_speaker()).take(line)
    assert table(fake_speaker(), is_interactive=True).take(line)
    assert capsys.readouterr().err.startswith("error: ")


def test_a_message_that_does_not_fit_is_forgotten(fake_speaker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    session = table(fake_speaker(), is_interactive=True)
    session.take("a")
    session.take("a long one")
    assert contents(session) == ["a", "fake saw 1"]
    session.take("b")
    assert contents(session)[-1] == "fake saw 3"
    assert "too long" in capsys.readouterr().err


def test_left_out_turns_are_told_when_their_number_changes(
    fake_speaker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    session = table(fake_speaker(context=3))
    notes = []
    for line in ("a", "b", "c", "/undo", "c"):
        session.take(line)
        notes.append("left out" in capsys.readouterr().err)
    assert notes == [False, False, True, False, False]
    session.take("d")
    assert "the oldest 4 of 7 messages" in capsys.readouterr().err


def test_the_part_of_a_stopped_reply_is_kept(fake_speaker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    session = table(fake_speaker(says=[("half a rep", "cancelled"), ("", "cancelled"), ("", "end_token")]))
    session.take("a")
    assert contents(session) == ["a", "half a rep"]
    for line in ("b", "c"):
        session.take(line)
    errors = capsys.readouterr().err
    assert "kept" in errors
    assert "not answered" in errors
    assert "said nothing" in errors
    assert contents(session) == ["a", "half a rep", "c"]
    session.take("/retry")
    assert contents(session)[-1] == "fake saw 3"


def test_a_cut_reply_is_told(fake_speaker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    table(fake_speaker(says=[("abc", "limit")])).take("a")
    assert "--max_new_tokens" in capsys.readouterr().err


def test_several_answer_each_to_its_own_history(fake_speaker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    session = table(fake_speaker("base"), fake_speaker("tuned"))
    session.take("a")
    assert capsys.readouterr().out == "── base ──\nbase saw 1\n── tuned ──\ntuned saw 1\n"
    assert contents(session, 0) == ["a", "base saw 1"]
    assert contents(session, 1) == ["a", "tuned saw 1"]


def test_ctrl_c_stops_all_that_would_answer(fake_speaker: Any) -> None:
    second = fake_speaker("tuned")
    session = table(fake_speaker("base", says=[("x", "cancelled")]), second)
    session.take("a")
    assert second.asked == []
    session.take("/retry")
    assert contents(session, 1) == ["a", "tuned saw 1"]


def test_save_and_load(fake_speaker: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "with blanks.jsonl"
    session = table(fake_speaker("base"), fake_speaker("tuned"), system="s")
    session.take("a")
    session.take(f"/save {path}")
    session.take("b")
    session.take(f"/save {path}")  # its own file may be replaced
    other = table(fake_speaker("base"), fake_speaker("tuned"))
    other.take(f"/load {path}")
    assert [contents(other, seat) for seat in (0, 1)] == [contents(session, seat) for seat in (0, 1)]
    with pytest.raises(InputError, match="2 conversations"):
        table(fake_speaker()).take(f"/load {path}")
    with pytest.raises(InputError, match="exists already"):
        table(fake_speaker(says=[("x", "end_token")])).take(f"/save {path}")
    assert "5 messages loaded" in capsys.readouterr().err


def test_help_names_every_command(fake_speaker: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    table(fake_speaker()).take("/help")
    told = capsys.readouterr().err
    assert all(name in told for name in [*COMMANDS, "/quit"])


def test_impatience_costs_no_conversation(
    fake_speaker: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speaker = fake_speaker()
    session = table(speaker, is_interactive=True)
    session.take("one")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(speaker, "reply", interrupted)
        assert session.take("two")
        assert "interrupted" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            table(speaker).take("a script ends")
    session.take("/retry")
    assert [turn.content for turn in session.seats[0].conversation.turns] == ["one", "fake saw 1", "two", "fake saw 3"]


def test_a_retry_that_cannot_be_asked_leaves_what_was_said(fake_speaker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    talking, silent = fake_speaker(), fake_speaker("silent")
    session = table(talking, silent, system="short")
    session.take("one")
    before = [seat.conversation.turns for seat in session.seats]

    def too_long(_: Any) -> None:
        raise InputError("the system message is too long")

    with monkeypatch.context() as patched:
        patched.setattr(silent, "fit", too_long)
        with pytest.raises(InputError, match="too long"):
            session.take("/retry")
    assert [seat.conversation.turns for seat in session.seats] == before
    session.seats[1].conversation.reset()
    before = [seat.conversation.turns for seat in session.seats]
    with pytest.raises(InputError, match="nothing to answer"):
        session.take("/retry")
    assert [seat.conversation.turns for seat in session.seats] == before
