"""The command: what it opens, what goes through a pipe, and what somebody sees who sits at a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from colossal_llama2.chat.generation import GenerationOptions
from colossal_llama2.chat.terminal.chat import ChatSettings, distinct, main, open_seats
from colossal_llama2.errors import InputError

READY = "\x1b[?2004h"  # the line editor is there: it asks the terminal to mark what is pasted
GREEDY = GenerationOptions(max_new_tokens=8, do_sample=False)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Give a function that puts a text on standard input."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.fixture
def bare_model_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """Give the tiny model without a chat template."""
    folder = tmp_path / "bare"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_each_line_of_a_pipe_is_a_message(
    tiny_model_dir: Path, pipe: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    settings = ChatSettings(tiny_model_dir, system="be kind", options=GREEDY, chat_template="transcript")
    pipe('the fox\n\n"""two\nlines"""\n/quit\nnever\n')
    main(settings)
    whole = capfd.readouterr()
    pipe("the fox\n")
    main(settings)
    assert whole.out.startswith(capfd.readouterr().out)
    assert whole.out.count("\n") >= 2
    assert "tokens; --max_new_tokens" in whole.err


def test_a_mistake_in_a_pipe_ends_it(tiny_model_dir: Path, pipe: Callable[[str], None], tmp_path: Path) -> None:
    pipe(f"/load {tmp_path}/absent\nthe fox\n")
    with pytest.raises(InputError):
        main(ChatSettings(tiny_model_dir, chat_template="transcript", options=GREEDY))


def test_side_by_side_each_has_its_own_template_or_is_lent_one(
    tiny_model_dir: Path, bare_model_dir: Path, pipe: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    pipe("the fox\n")
    main(ChatSettings(compare=(bare_model_dir, tiny_model_dir), options=GREEDY))
    told = capfd.readouterr()
    first, second = told.out.split("── model ──\n")
    assert first == f"── bare ──\n{second}"  # the same weights
    assert "bare has no chat template: it is asked by that of model" in told.err


def test_an_adapter_answers_beside_its_base(tiny_model_dir: Path, tiny_adapter_dir: Path) -> None:
    settings = ChatSettings(tiny_model_dir, (tiny_model_dir,), tiny_adapter_dir, options=GREEDY)
    seats = open_seats(settings)
    assert [seat.speaker.name for seat in seats] == [f"model+{tiny_adapter_dir.name}", "model"]
    assert distinct(["a", "b", "a"]) == ["a (1)", "b", "a (2)"]


def test_flags_that_do_not_go_together_are_refused(tiny_model_dir: Path, bare_model_dir: Path) -> None:
    whole = ChatSettings(tiny_model_dir)
    wrong = [
        ChatSettings(),
        ChatSettings(compare=(tiny_model_dir,)),
        ChatSettings(compare=(tiny_model_dir, tiny_model_dir), draft=tiny_model_dir),
        replace(whole, compare=(tiny_model_dir,), draft=tiny_model_dir),
        replace(whole, compare=(tiny_model_dir,), chat_template="transcript"),
        ChatSettings(bare_model_dir),
    ]
    for settings in wrong:
        with pytest.raises(InputError):
            open_seats(settings)


class Person:
    """Sits at a pseudo-terminal."""

    def __init__(self, *command: str) -> None:
        self._terminal, far_end = pty.openpty()
        environment = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=far_end, stdout=far_end, stderr=far_end, env=environment, start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - for Ctrl-C it must be the terminal's own process
        )  # fmt: skip
        os.close(far_end)
        self._unseen = b""

    def types(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def sees(self, expected: str, seconds: float = 120) -> None:
        """Read until a text is there; what comes behind it is still to be seen."""
        until = time.monotonic() + seconds
        while expected.encode() not in self._unseen:
            assert time.monotonic() < until, self._unseen.decode(errors="replace")
            if select.select([self._terminal], [], [], 0.2)[0]:
                self._unseen += os.read(self._terminal, 4096)
        self._unseen = self._unseen.partition(expected.encode())[2]


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def patient_model(source: Path, folder: Path) -> Path:
    """Copy a model that never comes to an end, and has room for it."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40_000}))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][config["eos_token_id"]] = 0.0  # always less likely than the likeliest
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.long
def test_somebody_types_reads_interrupts_and_goes_on(tiny_model_dir: Path, tmp_path: Path) -> None:
    person = Person(
        sys.executable, "tools/chat.py", "--model", str(patient_model(tiny_model_dir, tmp_path / "patient")),
        "--chat_template", "transcript", "--no_do_sample", "--max_new_tokens", "15000",
    )  # fmt: skip
    person.sees("/help tells the commands")
    person.sees(READY)
    person.types("今天 the fox\r")
    person.sees("\x1b[?2004l")
    time.sleep(2.0)  # words are coming
    person.types("\x03")
    person.sees("what is written is kept")
    person.sees(READY)
    person.types("two\x1b\rlines\r")
    person.sees("\x1b[?2004l")
    time.sleep(2.0)
    person.types("\x03")
    person.sees("what is written is kept")
    person.sees(READY)
    person.types(f"/save {tmp_path}/talk.jsonl\r")
    person.sees("saved to")
    person.sees(READY)
    person.types("/nonsense\r")
    person.sees("error: unknown command /nonsense")
    person.sees(READY)
    person.types("\x04")
    assert person.process.wait(timeout=30) == 0
    saved = (tmp_path / "talk.jsonl").read_text(encoding="utf-8")
    assert "今天 the fox" in saved
    assert "two\\nlines" in saved
    assert saved.count('"assistant"') == 2
