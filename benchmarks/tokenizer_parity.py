"""Do the fast tokenizer and SentencePiece give the same ids on every document, before and after expansion?

    python benchmarks/tokenizer_parity.py --data DIR

DIR holds ``llama2_tokenizer/``, ``pieces_zh_20k.jsonl`` and folders of jsonl. Every record of pretraining text is one
document, of other records every text field. Compared are SentencePiece's ids with those of `tokenizers` reading our
``tokenizer.json`` (special tokens in a text kept as text) and with those of ``AutoTokenizer``, bos included (on
documents without the text of a special token, and on the same documents with a space before them).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.jsonl import read_jsonl
from colossal_llama2.tokenizer.folder import read_folder
from colossal_llama2.tokenizer.init_tokenizer import Settings as ExpandSettings
from colossal_llama2.tokenizer.init_tokenizer import main as init_tokenizer
from colossal_llama2.tokenizer.loading import build_fast, read_model, special_tokens
from colossal_llama2.tokenizer.writing import write_tokenizer

_BATCH = 500


@dataclass(frozen=True)
class Settings:
    """Compare the fast tokenizer with SentencePiece on every document of a data folder."""

    data: Path
    """Folder with llama2_tokenizer/, pieces_zh_20k.jsonl and jsonl files below it."""

    output: Path = Path(__file__).resolve().parent / "results" / "tokenizer_parity.json"
    """File to write the result to."""


def main(settings: Settings) -> None:
    """Write both tokenizers, compare on every document, save the counts."""
    base = settings.data / "llama2_tokenizer"
    pieces = settings.data / "pieces_zh_20k.jsonl"
    files = [path for path in sorted(settings.data.rglob("*.jsonl")) if path != pieces]
    result: dict[str, Any] = {"machine": describe_machine(), "files": {}}
    with tempfile.TemporaryDirectory() as folder:
        plain, expanded = Path(folder) / "plain", Path(folder) / "expanded"
        _convert(base, plain)
        started = time.perf_counter()
        init_tokenizer(ExpandSettings(base, expanded, pieces))
        result["expansion_seconds"] = round(time.perf_counter() - started, 2)
        account = json.loads((expanded / "expansion.json").read_text(encoding="utf-8"))
        result["expansion"] = account["counts"]
        tokenizers = {"llama2": _Readers(plain), "expanded": _Readers(expanded)}
        for path in files:
            documents = [text for _, record in read_jsonl(path) for text in _texts(record)]
            counts: dict[str, Any] = {"documents": len(documents), "characters": sum(map(len, documents))}
            for name, readers in tokenizers.items():
                counts[name] = readers.compare(documents)
            result["files"][path.relative_to(settings.data).as_posix()] = counts
            cli.say(f"{path.relative_to(settings.data)}: {counts}")
    result["total"] = _total(result["files"].values(), list(tokenizers))
    cli.say(f"total: {result['total']}")
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class _Readers:
    """The three readers of one tokenizer folder."""

    def __init__(self, folder: Path) -> None:
        self.processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.fast.encode_special_tokens = True
        self.auto = AutoTokenizer.from_pretrained(str(folder))
        self.markers = [token.content for token in self.auto.added_tokens_decoder.values()]

    def compare(self, documents: Sequence[str]) -> dict[str, int]:
        """Count tokens and documents with other ids, by reader."""
        counts = {"tokens": 0, "fast_differs": 0, "auto_differs": 0, "auto_differs_after_space": 0, "auto_skipped": 0}
        for begin in range(0, len(documents), _BATCH):
            batch = list(documents[begin : begin + _BATCH])
            expected = [ids.tolist() for ids in self.processor.encode(batch, out_type="numpy", num_threads=2)]
            actual = self.fast.encode_batch_fast(batch, add_special_tokens=False)
            counts["tokens"] += sum(map(len, expected))
            counts["fast_differs"] += sum(encoding.ids != ids for encoding, ids in zip(actual, expected, strict=True))
            plain = [text for text in batch if not any(marker in text for marker in self.markers)]
            counts["auto_skipped"] += len(batch) - len(plain)
            counts["auto_differs"] += self._auto_differs(plain)
            counts["auto_differs_after_space"] += self._auto_differs([f" {text}" for text in plain])
        return counts

    def _auto_differs(self, texts: list[str]) -> int:
        if not texts:
            return 0
        expected = self.processor.encode(texts, out_type="numpy", num_threads=2)
        actual = self.auto(texts, verbose=False)["input_ids"]
        bos = self.auto.bos_token_id
        return sum([bos, *ids.tolist()] != found for ids, found in zip(expected, actual, strict=True))


def _convert(base: Path, target: Path) -> None:
    """Write the base tokenizer itself as we write an expanded one."""
    folder = read_folder(base)
    model = read_model(folder)
    target.mkdir()
    write_tokenizer(target, folder, model, build_fast(folder, model), special_tokens(folder, model))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict) and "category" in value:  # a pretraining record is one document
        yield value["source"] + value["target"]
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)


def _total(files: Any, names: list[str]) -> dict[str, Any]:
    files = list(files)
    total: dict[str, Any] = {name: sum(counts[name] for counts in files) for name in ("documents", "characters")}
    for name in names:
        total[name] = {key: sum(counts[name][key] for counts in files) for key in files[0][name]}
    return total


if __name__ == "__main__":
    cli.run(Settings, main)
