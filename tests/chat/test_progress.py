"""Where there is no terminal, a line now and then tells how far a run is and what it has spent."""

from __future__ import annotations

from pathlib import Path

import pytest

from colossal_llama2.chat import progress as module
from colossal_llama2.chat.answer_journal import Reply, open_journal
from colossal_llama2.chat.progress import Progress
from colossal_llama2.chat.spending import Spending, SpendingOptions


def test_lines_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with open_journal(tmp_path / "a.journal", {}) as journal:
        journal.add("one#0", "d", Reply("", prompt_tokens=900, completion_tokens=600))
        progress = Progress(Spending(SpendingOptions(price_prompt=1000.0), journal))
    progress.begin(100, "conversations")
    for _ in range(10):
        clock[0] += 7.0
        progress.step()
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "conversations: 5 of 100, 1 requests, 1,500 tokens, cost 0.9000",
        "conversations: 10 of 100, 1 requests, 1,500 tokens, cost 0.9000",
    ]
