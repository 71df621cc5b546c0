"""Are mined pieces better than other lists of their size, and what does mining cost?

    python benchmarks/mine_pieces.py --data DIR

DIR holds ``llama2_tokenizer/``, ``pieces_zh_20k.jsonl``, ``pretrain/zh``, ``pretrain/en`` and ``sft/``. Nine tenths of
the documents of ``pretrain/zh`` are mined; the lists are measured on the tenth part held out, and on the Chinese files
of ``sft/`` that hold other text than it and of another kind. Beside the mined list: the list given, as it stands and
without what would change English; and what SentencePiece's own trainer makes of the same nine tenths, BPE as it is and
Unigram with the prefixes that its pieces need, each cut to the same number of pieces that are new and leave English as
it is.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.jsonl import read_jsonl
from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.mining_corpus import read_corpus
from colossal_llama2.tokenizer.mining_rules import CharacterKinds, find_old_characters
from colossal_llama2.tokenizer.mining_state import DIGIT, NEW
from colossal_llama2.tokenizer.piece_list import read_piece_list
from colossal_llama2.tokenizer.piece_model import NORMAL, PieceModel, halves, parse_piece_model, read_piece_model

_ROOT: Final = Path(__file__).resolve().parents[1]
_COMMAND: Final = [sys.executable, str(_ROOT / "tools" / "mine_pieces.py")]
_NUM_PIECES: Final = 17_953
_SFT: Final = ("alpaca_zh_demo", "medical_sft_zh_messages", "sharegpt_zh_messages")


@dataclass(frozen=True)
class Settings:
    """Mine, measure the lists, and save what came of it."""

    data: Path
    """Folder with llama2_tokenizer/, pieces_zh_20k.jsonl, pretrain/ and sft/."""

    peers: bool = True
    """Train SentencePiece's own vocabularies too (several minutes)."""

    output: Path = Path(__file__).resolve().parent / "results" / "mine_pieces.json"
    """File to write the result to."""


@dataclass(frozen=True)
class Samples:
    """Texts by name; the English ones are to stay as they are."""

    mined: list[str]
    held_out: list[str]
    sft: dict[str, list[str]]
    english: list[str]


def main(settings: Settings) -> None:
    """Run everything in turn; a list is a row of the table."""
    model = read_piece_model(settings.data / "llama2_tokenizer" / "tokenizer.model")
    samples = _read_samples(settings.data)
    kinds = CharacterKinds(find_old_characters(samples.english, samples.mined))
    result: dict[str, Any] = {"machine": describe_machine(), "num_pieces": _NUM_PIECES, "lists": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result["cost"] = _measure_cost(settings.data, folder)
        for row, pieces in _lists(settings, folder, model, samples, kinds):
            result["lists"][row] = _measure(model, pieces, samples)
            cli.say(f"{row}: {result['lists'][row]}")
    given, mined = (result["lists"][row]["held_out"] for row in ("given, without what changes English", "mined"))
    result["fewer_tokens_than_given_on_held_out"] = round(1 - mined / given, 4)
    cli.say(f"tokens on held-out text, against the list given: {mined / given - 1:+.1%}")
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_samples(data: Path) -> Samples:
    chinese = read_corpus([data / "pretrain" / "zh"], holdout=0.1)
    english = read_corpus([data / "pretrain" / "en"], holdout=0.0)
    return Samples(
        mined=[document.text for document in chinese.mined],
        held_out=[document.text for document in chinese.held_out],
        sft={name: list(_strings(data / "sft" / f"{name}.jsonl")) for name in _SFT},
        english=[document.text for document in english.mined],
    )


def _strings(path: Path) -> Iterator[str]:
    for _, record in read_jsonl(path):
        for value in record.values():
            if isinstance(value, str):
                yield value
            elif isinstance(value, list):
                yield from (message["content"] for message in value)


def _measure_cost(data: Path, folder: Path) -> dict[str, Any]:
    """Mine 20,000 pieces from all of pretrain/, first with nothing compiled before, then once more."""
    flags = [f"--corpus={data / 'pretrain'}", f"--keep_identical={data / 'pretrain' / 'en'}", "--num_pieces=20000"]
    cache = folder / "compiled"
    first, again = (_mine(data, folder / f"cost-{number}.jsonl", flags, cache) for number in range(2))
    size = sum(path.stat().st_size for path in (data / "pretrain").rglob("*.jsonl"))
    same = (folder / "cost-0.jsonl").read_bytes() == (folder / "cost-1.jsonl").read_bytes()
    return {"bytes": size, "pieces": 20_000, "first_run": first, "again": again, "same_bytes": same}


def _mine(data: Path, output: Path, flags: Sequence[str], cache: Path | None = None) -> dict[str, float]:
    """Run the command as a user would; return seconds, start-up included, processor seconds and peak memory in MB."""
    environment = {**os.environ, **({} if cache is None else {"NUMBA_CACHE_DIR": str(cache)})}
    own = [f"--source_tokenizer_dir={data / 'llama2_tokenizer'}", f"--output={output}"]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([*_COMMAND, *own, *flags], env=environment)
    peak = 0
    while process.poll() is None:
        # The high-water mark of the process itself: what wait4 reports begins with its parent's.
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
            peak = max([peak, *(int(line.split()[1]) for line in status if line.startswith("VmHWM"))])
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError("mine_pieces failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result = {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(spent, 1),
        "peak_rss_mb": peak // 1024,
        "load_average": round(os.getloadavg()[0], 1),
    }
    cli.say(f"{output.name}: {result}")
    return result


def _lists(
    settings: Settings, folder: Path, model: PieceModel, samples: Samples, kinds: CharacterKinds
) -> Iterator[tuple[str, list[str]]]:
    """Yield every list by name, in the order of its merges."""
    yield "none", []
    known = {entry.piece for entry in model.pieces}
    given = [item.piece for item in read_piece_list(settings.data / "pieces_zh_20k.jsonl") if item.piece not in known]
    yield "given", sorted(given, key=len)
    yield "given, without what changes English", sorted(_fit(given, known, kinds), key=len)
    for row, flags in (("mined", []), ("mined, balance 1", ["--balance=1"])):
        output = folder / f"{row}.jsonl"
        zh, en = (settings.data / "pretrain" / name for name in ("zh", "en"))
        _mine(
            settings.data, output, [f"--corpus={zh}", f"--keep_identical={en}", f"--num_pieces={_NUM_PIECES}", *flags]
        )
        yield row, [item.piece for item in read_piece_list(output)]
    if settings.peers:
        bpe = _fit(_train(samples.mined, "bpe"), known, kinds)
        characters = [piece for piece in bpe if len(piece) == 1]  # the trainer lists them last
        yield "SentencePiece BPE", [*characters, *(piece for piece in bpe if len(piece) > 1)][:_NUM_PIECES]
        unigram = _fit(_train(samples.mined, "unigram"), known, kinds)
        yield "SentencePiece Unigram, closed", sorted(_closed(unigram, known), key=lambda piece: (len(piece), piece))


def _fit(pieces: Sequence[str], known: set[str], kinds: CharacterKinds) -> list[str]:
    """Keep what is new, holds a character that is not old, and no digit."""
    flags = {piece: kinds.of_piece(piece)[0] for piece in dict.fromkeys(pieces) if piece not in known}
    return [piece for piece, its in flags.items() if its & NEW and not its & DIGIT]


def _train(texts: Sequence[str], model_type: str) -> list[str]:
    """Return the pieces of a vocabulary that SentencePiece trains on the texts, best first."""
    lines = (line for text in texts for line in text.split("\n") if line.strip())
    writer = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=writer,
        model_type=model_type,
        vocab_size=30_000,
        normalization_rule_name="identity",
        split_digits=True,
        character_coverage=1.0,
        max_sentence_length=20_000,
        num_threads=2,
        minloglevel=2,
    )
    return [entry.piece for entry in parse_piece_model(writer.getvalue()).pieces if entry.type == NORMAL]


def _closed(pieces: Sequence[str], known: set[str]) -> set[str]:
    """Return as many of the pieces, best first, as fit into the size together with the prefixes they need."""
    number = _NUM_PIECES
    while True:
        closed = _with_prefixes(pieces[:number], known)
        if len(closed) <= _NUM_PIECES:
            return closed
        number -= max(1, (len(closed) - _NUM_PIECES) // 2)


def _with_prefixes(pieces: Sequence[str], known: set[str]) -> set[str]:
    closed = {*pieces, *(character for piece in pieces for character in piece if character not in known)}
    for piece in sorted(pieces, key=len):
        while len(piece) > 1 and not _can_be_joined(piece, closed, known):
            piece = piece[:-1]
            closed.add(piece)
    return closed


def _can_be_joined(piece: str, new: set[str], known: set[str]) -> bool:
    return any((left in new or left in known) and (right in new or right in known) for left, right in halves(piece))


def _measure(model: PieceModel, pieces: Sequence[str], samples: Samples) -> dict[str, Any]:
    """Return tokens per character of every sample, and how many English documents change."""
    processor = SentencePieceProcessor(model_proto=expand_model(model, pieces).SerializeToString())
    before = SentencePieceProcessor(model_proto=model.SerializeToString())

    def rate(texts: list[str]) -> float:
        tokens = processor.encode(texts, out_type="numpy", num_threads=2)
        return round(sum(map(len, tokens)) / sum(map(len, texts)), 4)

    english = zip(samples.english, processor.encode(samples.english), before.encode(samples.english), strict=True)
    changed = [text for text, after_ids, before_ids in english if after_ids != before_ids]
    return {
        "pieces": len(pieces),
        "mined": rate(samples.mined),
        "held_out": rate(samples.held_out),
        "sft": rate([text for texts in samples.sft.values() for text in texts]),
        **{f"sft/{name}": rate(texts) for name, texts in samples.sft.items()},
        "english_changed": len(changed),
        "english_changed_without_han": sum(not any("\u4e00" <= c <= "\u9fff" for c in text) for text in changed),
        "english": len(samples.english),
    }


if __name__ == "__main__":
    cli.run(Settings, main)
