"""Last words: under the rank's name, where torchrun looks for them, and the culprit's before the victim's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from colossal_llama2 import cli, failing


@pytest.fixture
def as_rank_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Play rank 1 of 2 under torchrun; give the file that it would read."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr(failing, "SECONDS_FOR_THE_CULPRIT", 0.0)
    return tmp_path / "error.json"


def fail(error: Exception) -> None:
    try:
        raise error
    except Exception as caught:
        failing.report_failure(caught)


def test_a_rank_says_who_it_is_and_why(as_rank_one: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fail(ValueError("row 17"))
    said = capsys.readouterr().err
    assert said.startswith("rank 1 of 2 on ")
    assert said.endswith("ValueError: row 17\n")
    assert "raise error" in said
    message = json.loads(as_rank_one.read_text())["message"]
    assert message["message"] == "ValueError: row 17"
    assert "raise error" in message["extraInfo"]["py_callstack"]
    assert message["extraInfo"]["timestamp"].isdigit()


def test_without_ranks_it_is_a_plain_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    fail(ValueError("row 17"))
    assert capsys.readouterr().err.startswith("Traceback (most recent call last):\n")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:4133"), True),
        (RuntimeError("Read error [10.0.0.2]:4133: Connection timed out"), True),
        (RuntimeError("NCCL error: remote process exited or there was a network error"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("Connection closed by peer"), False),
    ],
)
def test_victims_are_told_from_culprits(
    as_rank_one: Path, capsys: pytest.CaptureFixture[str], error: Exception, lost: bool
) -> None:
    fail(error)
    assert ("a peer of this rank is gone" in capsys.readouterr().err) == lost


def test_a_rank_by_itself_has_no_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not failing.lost_a_peer(RuntimeError("Connection closed by peer"))


def test_torchrun_hears_of_a_users_mistake(as_rank_one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_SECONDS_FOR_THE_FIRST_RANK", 0.0)
    cli._complain(cli.InputError("wrong", remedy="right it"))
    assert json.loads(as_rank_one.read_text())["message"]["message"] == "error: wrong; right it"
