"""The command: what it writes, what it refuses, and that it leaves whole things or nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from colossal_llama2 import cli
from colossal_llama2.dataset import encoding, prepare_pretrain_dataset
from colossal_llama2.dataset.parts import Row
from colossal_llama2.dataset.prepare_pretrain_dataset import PrepareSettings, main
from colossal_llama2.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TINY = [{"target": f"the fox {number}", "category": "ab"[number % 2]} for number in range(12)]
Prepare = Callable[..., Any]


def chunks(ids: list[int], max_length: int) -> list[tuple[int, ...]]:
    return [tuple(ids[begin : begin + max_length]) for begin in range(0, len(ids), max_length)]


@pytest.fixture(scope="module")
def processor(llama_tokenizer_dir: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(llama_tokenizer_dir / "tokenizer.model"))


def flags_of(settings: PrepareSettings, **changed: Any) -> list[str]:
    """Command line of some settings, without those that are off."""
    values = {name: getattr(settings, name) for name, _ in cli.flags(PrepareSettings)}
    pairs = [(f"--{name}", str(value)) for name, value in {**values, **changed}.items() if value is not False]
    return [part for pair in pairs for part in pair]


def test_it_writes_parts_jsonl_ledger_and_settings(tmp_path: Path, prepare: Prepare) -> None:
    import datasets

    prepared = prepare(tmp_path, TINY, num_spliced_dataset_bins=3)
    names = {path.name for path in prepared.settings.data_arrow_output_dir.iterdir()}
    assert names == {"part-00000", "part-00001", "part-00002", "manifest.json", "settings.yaml"}
    for bucket, rows in enumerate(prepared.rows()):
        lines = (tmp_path / "jsonl" / f"part-{bucket:05d}.jsonl").read_text().splitlines()
        dataset = datasets.load_from_disk(str(tmp_path / "arrow" / f"part-{bucket:05d}"))
        assert len(rows) > 0
        assert [json.loads(line) for line in lines] == rows == [dict(row) for row in dataset]
        assert max(len(row["input_ids"]) for row in rows) <= 32
    written = cli.parse(PrepareSettings, ["--config", str(tmp_path / "arrow" / "settings.yaml")])
    assert written == prepared.settings
    assert prepared.manifest["num_buckets"] == 3


def test_nothing_is_lost_between_the_text_and_the_rows(
    tmp_path: Path, prepare: Prepare, processor: SentencePieceProcessor
) -> None:
    short = [("the fox" * (n % 4), "</s> 今天 the dog " * (n % 9 + 1), f"{n % 3}") for n in range(50)]
    long_source = "the lazy dog " * 40
    texts = [*short, (long_source, "jumps", "long")]
    records = [{"source": source, "target": target, "category": name} for source, target, name in texts]
    prepared = prepare(tmp_path, records, max_length=20, num_spliced_dataset_bins=4)
    pieces = prepared.pieces()
    documents = [[1, *processor.encode(source + target), 2] for source, target, _ in texts]
    assert Counter(ids for ids, _ in pieces) == Counter(chunk for ids in documents for chunk in chunks(ids, 20))
    assert all(labels[0] == -100 for _, labels in pieces)
    assert all(label in (-100, token) for ids, labels in pieces for token, label in zip(ids, labels, strict=True))
    # Without a source everything but the first token of each piece is learned.
    plain = {
        chunk for (source, _, _), ids in zip(texts, documents, strict=True) if not source for chunk in chunks(ids, 20)
    }
    learned = [(ids, labels) for ids, labels in pieces if ids in plain]
    assert len(learned) >= len(plain) > 10
    assert all(labels[1:] == ids[1:] for ids, labels in learned)
    # Of a source that is longer than several rows nothing is learned, and the target behind it is.
    category = prepared.manifest["categories"]["long"]
    seam = len(processor.encode(long_source))
    assert seam > 100
    assert abs(category["not_learned"]["source"] - seam) <= 2  # a token across the seam, the trailing space
    assert 2 <= category["learned_tokens"] <= len(documents[-1]) - seam + 1
    assert sum(bucket["rows_without_learned_tokens"] for bucket in prepared.manifest["buckets"]) >= 3


def test_a_document_of_a_million_characters(
    tmp_path: Path, prepare: Prepare, processor: SentencePieceProcessor
) -> None:
    text = ("the quick brown fox 今天天气 " * 40_000)[:1_000_000]
    prepared = prepare(tmp_path, [{"target": text}, *TINY], max_length=512, num_spliced_dataset_bins=3)
    assert prepared.manifest["totals"]["characters"] > 1_000_000
    ids = [1, *processor.encode(text), 2]
    assert len(ids) > 100_000
    found = Counter(ids for ids, _ in prepared.pieces())
    assert not Counter(chunks(ids, 512)) - found
    # It lies in one bucket whole, and the small ones fill the others.
    holding = [number for number, rows in enumerate(prepared.rows()) if sum(len(r["input_ids"]) for r in rows) > 10_000]
    assert len(holding) == 1
    assert min(bucket["documents"] for bucket in prepared.manifest["buckets"]) >= 1


def test_ten_thousand_tiny_documents(tmp_path: Path, prepare: Prepare) -> None:
    records = [{"target": "abcdefghij"[n % 10], "category": f"c{n % 7}"} for n in range(10_000)]
    prepared = prepare(tmp_path, records, max_length=2048, num_spliced_dataset_bins=7)
    ledger = prepared.manifest
    assert (
        ledger["totals"]["documents"] == sum(len(row["seq_lens"]) for rows in prepared.rows() for row in rows) == 10_000
    )
    assert ledger["totals"]["fill"] > 0.8
    for category in ledger["categories"].values():
        counts = category["documents_per_bucket"]
        assert max(counts) - min(counts) <= 1


def test_output_does_not_depend_on_workers_or_place(tmp_path: Path, prepare: Prepare) -> None:
    records = [{"target": "the fox 今天 " * (n % 13 + 1), "category": str(n % 3)} for n in range(60)]
    outputs = [
        prepare(tmp_path / place, records, num_workers=workers, num_spliced_dataset_bins=3).outputs()
        for place, workers in (("one", 1), ("deeper/two", 2))
    ]
    assert len(outputs[0]) == 3 * 4 + 1
    assert outputs[0] == outputs[1]
    again = prepare(tmp_path / "one", seed=7, num_spliced_dataset_bins=3, overwrite=True).outputs()
    assert again.keys() == outputs[0].keys()
    assert again != outputs[0]


def test_output_does_not_depend_on_the_encoder(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gigatoken")
    records = [
        {"source": "the fox " * (n % 3), "target": f"今天</s> {n}\n  \x00" * (n % 13 + 1), "category": str(n % 3)}
        for n in range(60)
    ]
    loaded = []
    load = encoding.load_encoder

    def watched(*args: Any, **options: Any) -> Any:
        loaded.append(load(*args, **options))
        return loaded[-1]

    monkeypatch.setattr(encoding, "load_encoder", watched)
    encoding._encoder.cache_clear()
    kinds = (("reference", 1), ("gigatoken", 1), ("gigatoken", 2), ("auto", 1))
    outputs = [
        prepare(tmp_path / f"{kind}{workers}", records, encoder=kind, num_workers=workers).outputs()
        for kind, workers in kinds
    ]
    assert outputs[0]
    assert all(output == outputs[0] for output in outputs)
    assert [encoder.kind for encoder in loaded] == ["sentencepiece", "gigatoken", "sentencepiece"]
    monkeypatch.setattr(prepare_pretrain_dataset, "_WORTH_LOADING", 0)
    assert prepare(tmp_path / "large", records, encoder="auto").outputs() == outputs[0]
    assert loaded[-1].kind == "gigatoken"


def test_bad_records_can_be_skipped_and_are_listed(tmp_path: Path, prepare: Prepare) -> None:
    lines = ['{"target": "the"}', "{", "", '{"source": "x"}', '{"target": ""}', '{"target": "fox"}']
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (tmp_path / "in" / "empty.jsonl").write_text("")
    (tmp_path / "in" / "note.txt").write_text("")
    ledger = prepare(tmp_path, bad_records="skip").manifest
    assert [(refusal["file"], refusal["line"]) for refusal in ledger["refused_records"]] == [
        ("in/deep/a.jsonl", 2),
        ("in/deep/a.jsonl", 4),
        ("in/deep/a.jsonl", 5),
    ]
    assert "not JSON" in ledger["refused_records"][0]["reason"]
    assert (ledger["totals"]["documents"], ledger["totals"]["refused_lines"]) == (2, 3)
    assert [file["file"] for file in ledger["files"]] == ["in/deep/a.jsonl", "in/empty.jsonl"]
    assert ledger["ignored_files"] == ["in/note.txt"]


def test_the_manifest_names_no_place_of_this_machine(tmp_path: Path, prepare: Prepare) -> None:
    prepare(tmp_path, TINY)
    assert str(tmp_path) not in (tmp_path / "arrow" / "manifest.json").read_text()


def test_as_many_buckets_as_documents(tmp_path: Path, prepare: Prepare) -> None:
    prepared = prepare(tmp_path, TINY, num_spliced_dataset_bins=len(TINY))
    assert [bucket["documents"] for bucket in prepared.manifest["buckets"]] == [1] * len(TINY)


REFUSED: list[tuple[str, bytes | None, dict[str, Any], str]] = [
    ("missing folder", None, {"data_input_dirs": "gone"}, "gone: does not exist; name folders"),
    ("no folder named", None, {"data_input_dirs": " , "}, "--data_input_dirs names nothing"),
    ("missing tokenizer", None, {"tokenizer_dir": "gone"}, "gone: no such folder"),
    ("not jsonl", b"once upon\n", {}, "in/data.jsonl:1: not JSON"),
    ("a JSON array", b'[{"target": "x"}]', {}, "in/data.jsonl:1: holds a JSON list"),
    ("no target", b'{"target": "x"}\n\n{"text": "y"}\n', {}, 'in/data.jsonl:3: no "target"'),
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
    assert {path.name for path in tmp_path.iterdir()} == {"in"}  # not even a cache
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
    build_rows, calls = prepare_pretrain_dataset.build_rows, []

    def broken(job: Any) -> Iterator[Row]:
        calls.append(job.bucket)
        if len(calls) == 2:
            raise end
        yield from build_rows(job)

    monkeypatch.setattr(prepare_pretrain_dataset, "build_rows", broken)
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
