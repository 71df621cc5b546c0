"""What an expansion costs and keeps: pieces in between, pieces left out, English documents changed, tokens, time.

    python benchmarks/expand_tokenizer.py --data DIR [--other_list FILE]

DIR holds ``llama2_tokenizer/``, ``pieces_zh_20k.jsonl`` and ``pretrain/{en,zh}/*.jsonl``. The list is added in several
ways, and so is the vocabulary of another tokenizer: a Unigram model of 48,000 pieces trained on ``pretrain/zh``, whose
pieces were not made by merging. ``missing_prefixes`` is what the plain way of closing would add: of every piece that
no two pieces join to, each beginning that is no piece yet.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sentencepiece
from sentencepiece import SentencePieceProcessor

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.tokenizer.documents import Documents
from colossal_llama2.tokenizer.init_tokenizer import Settings as ExpandSettings
from colossal_llama2.tokenizer.init_tokenizer import main as init_tokenizer
from colossal_llama2.tokenizer.old_text import script_of

_OTHER_PIECES = 48_000
_BATCH = 2000


@dataclass(frozen=True)
class Settings:
    """Expand Llama-2's tokenizer in several ways and measure each."""

    data: Path
    """Folder with llama2_tokenizer/, pieces_zh_20k.jsonl and pretrain/{en,zh}/."""

    other_list: Path | None = None
    """Piece list of another vocabulary; by default one is trained on pretrain/zh, which takes minutes."""

    output: Path = Path(__file__).resolve().parent / "results" / "expand_tokenizer.json"
    """File to write the result to."""


def main(settings: Settings) -> None:
    """Expand, measure, save."""
    pieces = settings.data / "pieces_zh_20k.jsonl"
    english = {"keep_identical": (settings.data / "pretrain" / "en",)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        other = settings.other_list or _train_list(
            Documents([settings.data / "pretrain" / "zh"]), folder / "other.jsonl"
        )
        ways: dict[str, tuple[Path, dict[str, Any]]] = {
            "list": (pieces, {}),
            "list, merged in its own order": (pieces, {"merge_order": "list"}),
            "list, unreachable dropped": (pieces, {"unreachable": "drop"}),
            "list, English kept": (pieces, english),
            "other vocabulary": (other, {}),
            "other vocabulary, English kept": (other, english),
        }
        result: dict[str, Any] = {
            "machine": describe_machine(),
            "base": _Measure(settings.data).measure(None),
            "ways": {},
        }
        for way, (path, flags) in ways.items():
            target = folder / "target"
            expand = ExpandSettings(settings.data / "llama2_tokenizer", target, path, overwrite=True, **flags)
            result["ways"][way] = _expand(expand) | _Measure(settings.data).measure(target)
            cli.say(f"{way}: {result['ways'][way]}")
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _expand(settings: ExpandSettings) -> dict[str, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        init_tokenizer(settings)
    seconds = {"seconds": round(time.perf_counter() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    account = json.loads((settings.target_tokenizer_dir / "expansion.json").read_text(encoding="utf-8"))
    kept = {"raised": len(account["raised"]), "merge_order": account["merge_order"]}
    return {**account["counts"], **kept, "missing_prefixes": _missing_prefixes(settings), **seconds}


def _missing_prefixes(settings: ExpandSettings) -> int | None:
    """Count what closing by beginnings alone would add to the wanted pieces of an expansion."""
    processor = SentencePieceProcessor(model_file=str(settings.target_tokenizer_dir / "tokenizer.model"))
    account = json.loads((settings.target_tokenizer_dir / "expansion.json").read_text(encoding="utf-8"))
    names = [processor.id_to_piece(index) for index in range(account["num_tokens"] - len(account["intermediates"]))]
    known = set(names)
    wanted = names[account["base_tokens"] :]
    stuck = [piece for piece in wanted if not _can_be_built(piece, known)]
    return len({piece[:end] for piece in stuck for end in range(2, len(piece))} - known)


def _can_be_built(piece: str, known: set[str]) -> bool:
    """Tell whether two pieces at a time can be joined to it, in whatever order."""
    spans = {(at, at + 1) for at in range(len(piece))}
    for length in range(2, len(piece) + 1):
        for begin in range(len(piece) - length + 1):
            end = begin + length
            if piece[begin:end] in known and any(
                (begin, at) in spans and (at, end) in spans for at in range(begin + 1, end)
            ):
                spans.add((begin, end))
    return (0, len(piece)) in spans


class _Measure:
    """Counts the tokens of the Chinese documents, and the English ones without a Chinese letter that changed."""

    def __init__(self, data: Path) -> None:
        self._chinese, self._english = (Documents([data / "pretrain" / name]) for name in ("zh", "en"))
        self._base = SentencePieceProcessor(model_file=str(data / "llama2_tokenizer" / "tokenizer.model"))

    def measure(self, tokenizer_dir: Path | None) -> dict[str, Any]:
        """Measure one tokenizer; None is the base."""
        processor = self._base
        if tokenizer_dir is not None:
            processor = SentencePieceProcessor(model_file=str(tokenizer_dir / "tokenizer.model"))
        tokens = characters = changed = longer = documents = 0
        for texts in _batches(self._chinese):
            tokens += sum(map(len, processor.encode(texts, out_type="numpy", num_threads=2)))
            characters += sum(map(len, texts))
        for texts in _batches(text for text in self._english if not any(script_of(letter) == "CJK" for letter in text)):
            before, after = (p.encode(texts, num_threads=2) for p in (self._base, processor))
            documents += len(texts)
            changed += sum(old != new for old, new in zip(before, after, strict=True))
            longer += sum(len(new) > len(old) for old, new in zip(before, after, strict=True))
        return {
            "tokens_per_character_zh": round(tokens / characters, 4),
            "english_documents": documents,
            "english_changed": changed,
            "english_longer": longer,
        }


def _batches(texts: Iterator[str] | Documents) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _train_list(documents: Documents, path: Path) -> Path:
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in documents for line in text.splitlines() if line.strip()),
        model_writer=writer,
        model_type="unigram",
        vocab_size=_OTHER_PIECES,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        num_threads=2,
        minloglevel=2,
    )
    processor = SentencePieceProcessor(model_proto=writer.getvalue())
    names: Sequence[str] = [processor.id_to_piece(index) for index in range(3, len(processor))]
    path.write_text("".join(json.dumps({"piece": name}) + "\n" for name in names), encoding="utf-8")
    return path


if __name__ == "__main__":
    cli.run(Settings, main)
