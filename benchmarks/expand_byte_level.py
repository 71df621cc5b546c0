"""Expand a byte-level BPE tokenizer with a list of Chinese pieces: what is reached, what it costs, what changes.

    python benchmarks/expand_byte_level.py --data DIR

DIR holds ``pieces_zh_20k.jsonl`` and pretraining records in ``pretrain/en`` and ``pretrain/zh``. The base is trained
here: a byte-level BPE of Llama-3's kind (its pattern, ``ignore_merges``, special tokens behind the vocabulary) on all
the English and a little of the Chinese, so that it is as weak in Chinese as such a base is. It is then expanded twice
by `init_tokenizer`: with the English text held to its tokens, and without. Unreachable counts are by merges alone: as a
whole word of the pre-tokenizer ``ignore_merges`` finds any token, inside a run of Chinese it finds none.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.jsonl import read_jsonl
from colossal_llama2.tokenizer.byte_level_closing import Rule, close_merges
from colossal_llama2.tokenizer.byte_level_model import ByteLevelModel, cut_by_merges, read_byte_level, to_letters
from colossal_llama2.tokenizer.byte_level_pieces import sort_byte_level
from colossal_llama2.tokenizer.compression_rate import measure_compression
from colossal_llama2.tokenizer.encoder import Encoder
from colossal_llama2.tokenizer.init_tokenizer import Settings as ExpandSettings
from colossal_llama2.tokenizer.init_tokenizer import main as init_tokenizer
from colossal_llama2.tokenizer.intermediates import fewest_intermediates
from colossal_llama2.tokenizer.loading import load_encoder
from colossal_llama2.tokenizer.piece_list import read_piece_list
from colossal_llama2.tokenizer.piece_model import as_text

_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_HAN: Final = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_BATCH: Final = 1000


@dataclass(frozen=True)
class Settings:
    """Train a byte-level BPE tokenizer, expand it by a piece list, and count."""

    data: Path
    """Folder with pieces_zh_20k.jsonl, pretrain/en and pretrain/zh."""

    vocab_size: int = 32_000
    """Tokens of the base, special tokens not counted."""

    chinese_characters: int = 200_000
    """Characters of Chinese text in the base's training text."""

    output: Path = Path(__file__).resolve().parent / "results" / "expand_byte_level.json"
    """File to write the result to."""


def main(settings: Settings) -> None:
    """Train, close in several ways, expand twice, save the counts."""
    english, chinese = (list(_documents(settings.data / "pretrain" / name)) for name in ("en", "zh"))
    pieces = settings.data / "pieces_zh_20k.jsonl"
    result: dict[str, Any] = {"machine": describe_machine(), "settings": _named(settings)}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        base.mkdir()
        fast = _train([*english, *_beginning(chinese, settings.chinese_characters)], settings.vocab_size)
        fast.save(str(base / "tokenizer.json"))
        result["closing"] = _closing(read_byte_level(fast, base), pieces)
        cli.say(f"closing: {result['closing']}")
        before = load_encoder(base, 2)
        result["tokens_per_character"] = {"base": _rates(before, english, chinese)}
        for name, kept in (("protected", (settings.data / "pretrain" / "en",)), ("unprotected", ())):
            target = Path(folder) / name
            used = time.process_time()
            init_tokenizer(ExpandSettings(base, target, pieces, keep_identical=kept))
            seconds = time.process_time() - used
            account = json.loads((target / "expansion.json").read_text(encoding="utf-8"))
            after = load_encoder(target, 2)
            result[name] = {
                "cpu_seconds": round(seconds, 1),
                "counts": account["counts"],
                "english": _changes(before, after, english),
                "chinese": _changes(before, after, chinese),
            }
            result["tokens_per_character"][name] = _rates(after, english, chinese)
            cli.say(f"{name}: {result[name]}, {result['tokens_per_character'][name]}")
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _named(settings: Settings) -> dict[str, int]:
    return {"vocab_size": settings.vocab_size, "chinese_characters": settings.chinese_characters}


def _documents(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.jsonl")):
        for _, record in read_jsonl(path):
            yield record["source"] + record["target"]


def _beginning(documents: Iterable[str], characters: int) -> Iterator[str]:
    for document in documents:
        if characters <= 0:
            return
        yield document[:characters]
        characters -= len(document)


def _train(documents: Sequence[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.add_special_tokens([f"<|reserved_{index}|>" for index in range(256)])
    return tokenizer


def _closing(model: ByteLevelModel, pieces: Path) -> dict[str, Any]:
    """Count what closing reaches and adds, and how few tokens in between there could be."""
    new = sorted(sort_byte_level(read_piece_list(pieces), model, ()).new, key=len)
    tokens = [to_letters(as_text(piece)) for piece in new]
    cuts = dict(zip(tokens, cut_by_merges(model.content, tokens), strict=True))
    started = time.process_time()
    closed = close_merges(cuts, model.vocab, Rule())
    seconds = time.process_time() - started
    unclosed = close_merges(cuts, model.vocab, Rule(may_add=False))
    stuck = {token: parts for token, parts in cuts.items() if not _is_buildable(parts, cuts)}
    searched = fewest_intermediates(stuck, {*cuts, *model.vocab}, lambda _: True)
    return {
        "new_pieces": len(new),
        "base_tokens_a_piece": round(sum(map(len, cuts.values())) / len(cuts), 3),
        "unreachable_without_new_merges": sum(len(parts) > 1 for parts in cuts.values()),
        "unreachable_with_merges_of_two_tokens_there_are": len(unclosed.left_out),
        "unreachable_closed": len(closed.left_out),
        "new_merges": len(closed.merges),
        "in_between": len(closed.between),
        "in_between_by_search_without_merge_order": len(searched.pieces),
        "in_between_at_least": _at_least(stuck, cuts, model.vocab),
        "cpu_seconds": round(seconds, 1),
    }


def _is_buildable(parts: Sequence[str], wanted: Mapping[str, Any]) -> bool:
    """Tell whether wanted tokens alone, each taken as there, join to this one."""
    spans = {(at, at + 1) for at in range(len(parts))}
    for length in range(2, len(parts) + 1):
        for begin in range(len(parts) - length + 1):
            end = begin + length
            inner = length < len(parts) and "".join(parts[begin:end]) in wanted
            whole = length == len(parts)
            if inner or (whole and any((begin, at) in spans and (at, end) in spans for at in range(begin + 1, end))):
                spans.add((begin, end))
    return (0, len(parts)) in spans


def _at_least(stuck: Mapping[str, Sequence[str]], wanted: Mapping[str, Any], base: Mapping[str, int]) -> int:
    """Count pieces of which no two could share a token in between: each needs one of its own."""
    taken: set[str] = set()
    count = 0
    for token, parts in sorted(stuck.items(), key=lambda item: len(item[1])):
        size = len(parts)
        spans = {"".join(parts[i:j]) for i in range(size) for j in range(i + 2, size + 1)} - {token}
        spans = {span for span in spans if span not in wanted and span not in base}
        if taken.isdisjoint(spans):
            taken |= spans
            count += 1
    return count


def _rates(encoder: Encoder, english: Sequence[str], chinese: Sequence[str]) -> dict[str, float]:
    return {
        name: round(measure_compression(encoder, texts).tokens_per_character, 4)
        for name, texts in (("en", english), ("zh", chinese))
    }


def _changes(before: Encoder, after: Encoder, documents: Sequence[str]) -> dict[str, int]:
    """Count documents with other ids and with more tokens than before, apart by whether they hold Chinese."""
    counts = {
        "documents": len(documents),
        "without_chinese": 0,
        "changed": 0,
        "changed_without_chinese": 0,
        "longer": 0,
    }
    for begin in range(0, len(documents), _BATCH):
        batch = documents[begin : begin + _BATCH]
        old, new = before.encode(batch), after.encode(batch)
        for place, text in enumerate(batch):
            was, now = (one.ids[one.offsets[place] : one.offsets[place + 1]].tolist() for one in (old, new))
            plain = _HAN.search(text) is None
            counts["without_chinese"] += plain
            counts["changed"] += was != now
            counts["changed_without_chinese"] += plain and was != now
            counts["longer"] += len(now) > len(was)
    return counts


if __name__ == "__main__":
    cli.run(Settings, main)
