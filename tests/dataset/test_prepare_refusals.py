"""The command when it cannot go on: one line, exit code 2, and whole things or nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2 import cli
from colossal_llama2.dataset import prepare_pretrain_dataset
from colossal_llama2.dataset.preparation import PrepareSettings
from colossal_llama2.dataset.prepare_pretrain_dataset import main
from colossal_llama2.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TINY = [{"target": f"the fox {number}", "category": "ab"[number % 2]} for number in range(12)]
Prepare = Callable[..., Any]


def flags_of(settings: PrepareSettings, **changed: Any) -> list[str]:
    """Command line of some settings, without those that are off."""
    values: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        values |= vars(value) if is_dataclass(value) else {field.name: value}
    unset = ("False", "", "None")
    pairs = [(f"--{name}", str(value)) for name, value in {**values, **changed}.items() if str(value) not in unset]
    return [part for pair in pairs for part in pair]


REFUSED: list[tuple[str, bytes | None, dict[str, Any], str]] = [
    ("missing folder", None, {"data_input_dirs": "gone"}, "gone: does not exist; name folders"),
    ("no folder named", None, {"data_input_dirs": " , "}, "--data_input_dirs names nothing"),
    ("missing tokenizer", None, {"tokenizer_dir": "gone"}, "gone: no such folder"),
    ("not jsonl", b"once upon\n", {}, "in/data.jsonl:1: not JSON"),
    ("a JSON array", b'[{"target": "x"}]', {}, "in/data.jsonl:1: holds a JSON list"),
    ("no target", b'{"target": "x"}\n\n{"txt": "y"}\n', {}, 'in/data.jsonl:3: no "target"'),
    ("empty target", b'{"target": "x"}\r\n{"target": ""}', {}, 'in/data.jsonl:2: "target" is empty'),
    ("not UTF-8", b'{"target": "\xff"}', {}, "in/data.jsonl:1: not UTF-8"),
    ("nothing in it", b"\n\n", {}, "holds no record"),
    ("nothing but bad records", b"bad\n", {"bad_records": "skip"}, "holds no record"),
    ("fewer documents than bins", b'{"target": "x"}\n', {"num_spliced_dataset_bins": 2}, "1 documents cannot fill 2"),
    ("no bins", None, {"num_spliced_dataset_bins": 0}, "--num_spliced_dataset_bins is 0"),
    ("rows too short", None, {"max_length": 1}, "--max_length is 1"),
    ("rows too long", None, {"max_length": 1 << 30}, "--max_length is 1073741824"),
    ("bad seed", None, {"seed": -1}, "cannot be negative"),
    ("a bad word", None, {"bad_records": "keep"}, "bad_records"),
    ("not a number", None, {"max_length": "long"}, "max_length"),
    ("unknown flag", None, {"bins": 3}, "--bins"),
    ("one folder for both", None, {"data_jsonl_output_dir": "arrow"}, "both outputs go to one folder"),
    ("one in the other", None, {"data_jsonl_output_dir": "arrow/jsonl"}, "lies in this output"),
    ("cache in the output", None, {"data_cache_dir": "arrow/cache"}, "lies in this output"),
    ("cache is a file", None, {"data_cache_dir": "in/data.jsonl"}, "in/data.jsonl: cannot be created"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "changed", "complaint"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_mistakes_end_with_2_one_line_and_nothing_written(
    content: bytes | None,
    changed: dict[str, Any],
    complaint: str,
    tmp_path: Path,
    settings_for: Callable[..., PrepareSettings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = replace(
        settings_for(tmp_path, TINY),
        data_input_dirs="in",
        data_arrow_output_dir=Path("arrow"),
        data_jsonl_output_dir=Path("jsonl"),
    )
    if content is not None:
        (tmp_path / "in" / "data.jsonl").write_bytes(content)
    monkeypatch.setattr(sys, "argv", ["prepare", *flags_of(settings, **changed)])
    codes: list[int] = []
    cli.run(PrepareSettings, main, leave=codes.append)
    said = capsys.readouterr()
    assert codes == [2]
    assert said.out == ""
    assert [line.startswith("error: ") for line in said.err.splitlines()] == [True]
    assert complaint in said.err
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "cache"}  # no output, not even half of one
    assert not list(tmp_path.glob("cache/[!t]*"))  # nothing in the cache but whole shards
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["data.jsonl"]


def test_a_refusal_is_one_line_where_there_is_something_to_warn_of_too(
    tmp_path: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.md").write_text("")
    with pytest.raises(InputError, match=f"{len(TINY)} documents cannot fill"):
        prepare(tmp_path, TINY, num_spliced_dataset_bins=len(TINY) + 1)
    assert capsys.readouterr().err == ""
    assert prepare(tmp_path, TINY).manifest["ignored_files"] == ["in/notes.md"]
    assert capsys.readouterr().err.count("in/notes.md") == 1


@pytest.mark.parametrize("option", ["data_arrow_output_dir", "data_jsonl_output_dir"])
def test_an_output_in_the_input_would_be_read_the_next_time(option: str, tmp_path: Path, prepare: Prepare) -> None:
    with pytest.raises(InputError, match=r"in/out: lies in the input .*/in and would be read"):
        prepare(tmp_path, TINY, **{option: tmp_path / "in" / "out"})
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["data.jsonl"]


def test_a_tokenizer_without_bos_and_eos_is_refused(
    tmp_path: Path, prepare: Prepare, byte_level_tokenizer_dir: Path
) -> None:
    folder = Path(shutil.copytree(byte_level_tokenizer_dir, tmp_path / "tokenizer"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(InputError, match="neither a beginning-of-sequence nor an end-of-sequence token"):
        prepare(tmp_path, TINY, tokenizer_dir=folder)


@pytest.mark.parametrize("existing", ["arrow", "jsonl"])
def test_an_output_that_exists_is_kept_unless_told(existing: str, tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / existing).mkdir()
    (tmp_path / existing / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=f"{existing}: exists already; .*--overwrite"):
        prepare(tmp_path, TINY)
    assert (tmp_path / existing / "mine.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"in", existing}
    assert prepare(tmp_path, TINY, overwrite=True).manifest["totals"]["documents"] == len(TINY)
    assert not (tmp_path / existing / "mine.txt").exists()


def test_overwriting_never_deletes_what_the_run_needs(tmp_path: Path, prepare: Prepare) -> None:
    for options in (
        {"data_arrow_output_dir": tmp_path / "in"},
        {"data_jsonl_output_dir": tmp_path},
        {"data_arrow_output_dir": tmp_path / "arrow" / ".." / "in"},
    ):
        with pytest.raises(InputError, match="lies in this output"):
            prepare(tmp_path, TINY, overwrite=True, **options)
    assert (tmp_path / "in" / "data.jsonl").exists()


@pytest.mark.parametrize("end", [KeyboardInterrupt, OSError])
def test_an_end_while_writing_leaves_the_old_output(
    end: type[BaseException], tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare(tmp_path, TINY, num_spliced_dataset_bins=2).outputs()
    write_bucket, calls = prepare_pretrain_dataset.write_bucket, []

    def broken(job: Any) -> Any:
        calls.append(job.bucket)
        if len(calls) == 2:
            raise end
        return write_bucket(job)

    monkeypatch.setattr(prepare_pretrain_dataset, "write_bucket", broken)
    with pytest.raises(end):
        prepare(tmp_path, TINY, num_spliced_dataset_bins=2, overwrite=True, seed=9)
    assert calls == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrow", "cache", "in", "jsonl"]
    assert {
        f"{folder}/{path.relative_to(tmp_path / folder)}": path.read_bytes()
        for folder in ("arrow", "jsonl")
        for path in (tmp_path / folder).rglob("*")
        if path.is_file() and path.name != "settings.yaml"
    } == before


def test_ctrl_c_with_workers_leaves_nothing_half_written(
    tmp_path: Path, settings_for: Callable[..., PrepareSettings]
) -> None:
    records = [{"target": f"the fox {number}"} for number in range(2000)]
    settings = settings_for(tmp_path, records, num_workers=2, num_spliced_dataset_bins=2000)
    command = [sys.executable, str(ROOT / "tools" / "prepare_pretrain_dataset.py"), *flags_of(settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    while process.poll() is None and not list(tmp_path.glob(".arrow.partial-*/part-00009")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process gets it
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "in"]


def test_an_output_that_a_pattern_finds_input_in_is_not_replaced(
    tmp_path: Path, settings_for: Callable[..., PrepareSettings]
) -> None:
    settings = settings_for(tmp_path, TINY)
    target = tmp_path / "in"
    pattern = replace(settings, data_input_dirs=str(tmp_path / "i*" / "*.jsonl"), overwrite=True)
    for changed in (replace(pattern, data_arrow_output_dir=target), replace(pattern, data_jsonl_output_dir=target)):
        with pytest.raises(InputError, match=r"in/data.jsonl lies in this output"):
            main(changed)
    assert (target / "data.jsonl").is_file()
