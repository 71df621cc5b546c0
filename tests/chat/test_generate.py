"""The command: text on standard output, figures beside it, one line for a mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from colossal_llama2.chat.generate import GenerateSettings, main, read_prompt
from colossal_llama2.chat.generation import GenerationOptions
from colossal_llama2.errors import InputError


def test_the_text_alone_goes_to_standard_output(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = GenerateSettings(tiny_model_dir, "the", options=GenerationOptions(max_new_tokens=12, seed=1))
    main(settings)
    first = capsys.readouterr()
    main(settings)
    assert capsys.readouterr().out == first.out
    assert "tokens/s" in first.err
    assert "tokens/s" not in first.out


def test_an_adapter_writes_another_text(
    tiny_model_dir: Path, tiny_adapter_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = GenerationOptions(max_new_tokens=12, do_sample=False)
    written = []
    for adapter in (None, tiny_adapter_dir):
        main(GenerateSettings(tiny_model_dir, "the", adapter=adapter, options=options))
        written.append(capsys.readouterr().out)
    assert written[0] != written[1]
    with pytest.raises(InputError, match="no such folder"):
        main(GenerateSettings(tiny_model_dir, "the", adapter=tmp_path / "absent", options=options))


def test_a_shortened_text_is_announced(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(GenerateSettings(tiny_model_dir, "the", options=GenerationOptions(max_new_tokens=500, seed=1)))
    assert "room for" in capsys.readouterr().err


def test_a_prompt_file_is_taken_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("\ufeff今天\n\n".encode())
    assert read_prompt(GenerateSettings(tmp_path, prompt_file=path)) == "今天\n\n"


def test_prompts_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for settings in (
        GenerateSettings(tmp_path),
        GenerateSettings(tmp_path, prompt="a", prompt_file=tmp_path / "latin"),
        GenerateSettings(tmp_path, prompt_file=tmp_path / "latin"),
        GenerateSettings(tmp_path, prompt_file=tmp_path / "absent"),
        GenerateSettings(tmp_path, prompt="\udce9"),
    ):
        with pytest.raises(InputError):
            read_prompt(settings)


def test_a_mistake_is_one_line_and_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "tools/generate.py", "--model", str(tmp_path / "absent"), "--prompt", "a"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
