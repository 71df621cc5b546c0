"""Do gigatoken, the fast tokenizer and SentencePiece give the same ids on every document, before and after expansion?

    python benchmarks/tokenizer_parity.py --data DIR

DIR holds ``llama2_tokenizer/``, ``pieces_zh_20k.jsonl`` and folders of jsonl. Every record of pretraining text is one
document, of other records every text field. Compared are SentencePiece's ids with those of gigatoken, with those of
`tokenizers` reading our ``tokenizer.json`` (special tokens in a text kept as text) and with those of ``AutoTokenizer``,
bos included (on documents without the text of a special token, and on the same documents with a space before them).
The first two are compared on random strings too. Then the three encode the pretraining text by turns, in batches as
`prepare_pretrain_dataset` makes them, with one thread and with two.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.jsonl import read_jsonl
from colossal_llama2.tokenizer.encoder import Encoder, set_parallelism
from colossal_llama2.tokenizer.folder import read_folder
from colossal_llama2.tokenizer.gigatoken_encoder import GigatokenEncoder
from colossal_llama2.tokenizer.gigatoken_model import from_piece_model, pieces_and_merges
from colossal_llama2.tokenizer.init_tokenizer import Settings as ExpandSettings
from colossal_llama2.tokenizer.init_tokenizer import main as init_tokenizer
from colossal_llama2.tokenizer.loading import build_fast, load_encoder, read_model, special_tokens
from colossal_llama2.tokenizer.reference_encoders import FastEncoder
from colossal_llama2.tokenizer.writing import write_tokenizer

_BATCH = 500
_BATCH_CHARACTERS = 1 << 21
_SPACES = " \t\n\r\x00\u00a0\u2003\u3000\u200b\u0301"


@dataclass(frozen=True)
class Settings:
    """Compare the fast tokenizer with SentencePiece on every document of a data folder."""

    data: Path
    """Folder with llama2_tokenizer/, pieces_zh_20k.jsonl and jsonl files below it."""

    fuzzed: int = 100_000
    """Random strings to compare on."""

    speed_megabytes: float = 8.0
    """Text of each language to measure the speed with."""

    rounds: int = 5
    """Times that each reader encodes it."""

    output: Path = Path(__file__).resolve().parent / "results" / "tokenizer_parity.json"
    """File to write the result to."""


def main(settings: Settings) -> None:
    """Write both tokenizers, compare on every document, save the counts."""
    base = settings.data / "llama2_tokenizer"
    pieces = settings.data / "pieces_zh_20k.jsonl"
    files = [path for path in sorted(settings.data.rglob("*.jsonl")) if path != pieces]
    result: dict[str, Any] = {"machine": describe_machine(), "gigatoken": version("gigatoken"), "files": {}}
    with tempfile.TemporaryDirectory() as folder:
        plain, expanded = Path(folder) / "plain", Path(folder) / "expanded"
        _convert(base, plain)
        started = time.perf_counter()
        init_tokenizer(ExpandSettings(base, expanded, pieces))
        result["expansion_seconds"] = round(time.perf_counter() - started, 2)
        account = json.loads((expanded / "expansion.json").read_text(encoding="utf-8"))
        result["expansion"] = account["counts"]
        readers = {"llama2": _Readers(plain), "expanded": _Readers(expanded)}
        for path in files:
            documents = [text for _, record in read_jsonl(path) for text in _texts(record)]
            counts: dict[str, Any] = {"documents": len(documents), "characters": sum(map(len, documents))}
            for name, reader in readers.items():
                counts[name] = reader.compare(documents)
            result["files"][path.relative_to(settings.data).as_posix()] = counts
            cli.say(f"{path.relative_to(settings.data)}: {counts}")
        result["total"] = _total(result["files"].values(), list(readers))
        cli.say(f"total: {result['total']}")
        result["fuzzed"] = {name: reader.compare_fuzzed(settings.fuzzed) for name, reader in readers.items()}
        cli.say(f"fuzzed: {result['fuzzed']}")
        result["speed"] = {name: reader.measure(settings) for name, reader in readers.items()}
        cli.say(f"speed: {result['speed']}")
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class _Readers:
    """The readers of one tokenizer folder."""

    def __init__(self, folder: Path) -> None:
        self.processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.auto = AutoTokenizer.from_pretrained(str(folder))
        self.markers = [token.content for token in self.auto.added_tokens_decoder.values()]
        self.model = from_piece_model(read_model(read_folder(folder)), folder)
        self.encoders = {threads: self._encoders(folder, threads) for threads in (1, 2)}

    def _encoders(self, folder: Path, num_threads: int) -> dict[str, Encoder]:
        """Load the three, unproved: differences are to be counted here, not avoided."""
        reference = load_encoder(folder, num_threads)
        fast = FastEncoder(Tokenizer.from_file(str(folder / "tokenizer.json")), reference.vocabulary, reference.again)
        giga = GigatokenEncoder(self.model, reference, num_threads, "")
        return {"sentencepiece": reference, "fast": fast, "gigatoken": giga}

    def compare(self, documents: Sequence[str]) -> dict[str, int]:
        """Count tokens and documents with other ids, by reader."""
        counts = dict.fromkeys(("tokens", "fast_differs", "gigatoken_differs"), 0)
        counts.update(auto_differs=0, auto_differs_after_space=0, auto_skipped=0)
        for begin in range(0, len(documents), _BATCH):
            batch = list(documents[begin : begin + _BATCH])
            self._compare_encoders(batch, counts)
            plain = [text for text in batch if not any(marker in text for marker in self.markers)]
            counts["auto_skipped"] += len(batch) - len(plain)
            counts["auto_differs"] += self._auto_differs(plain)
            counts["auto_differs_after_space"] += self._auto_differs([f" {text}" for text in plain])
        return counts

    def compare_fuzzed(self, number: int) -> dict[str, int]:
        """Count random strings with other ids: of pieces, letters of all planes, spaces and special-token text."""
        generator = random.Random(20_000)
        pieces = pieces_and_merges(self.model)[0]
        counts = dict.fromkeys(("strings", "characters", "tokens", "fast_differs", "gigatoken_differs"), 0)
        for begin in range(0, number, _BATCH):
            batch = [_fuzzed(pieces, generator) for _ in range(min(_BATCH, number - begin))]
            counts["strings"] += len(batch)
            counts["characters"] += sum(map(len, batch))
            self._compare_encoders(batch, counts)
        return counts

    def _compare_encoders(self, batch: Sequence[str], counts: dict[str, int]) -> None:
        expected = self.encoders[2]["sentencepiece"].encode(batch)
        counts["tokens"] += len(expected.ids)
        for name in ("fast", "gigatoken"):
            found = self.encoders[2][name].encode(batch)
            counts[f"{name}_differs"] += sum(
                not np.array_equal(found.of(index), expected.of(index)) for index in range(len(batch))
            )

    def measure(self, settings: Settings) -> dict[str, Any]:
        """Encode by turns; return medians in MB (10^6 bytes of UTF-8) a second and a CPU second, and their ratios."""
        result: dict[str, Any] = {}
        for folder in sorted((settings.data / "pretrain").iterdir()):
            batches, size = _batches(folder, settings.speed_megabytes * 1e6)
            for threads, encoders in self.encoders.items():
                set_parallelism(threads)
                times: dict[str, list[tuple[float, float]]] = {name: [] for name in encoders}
                for _ in range(settings.rounds):
                    for name, encoder in encoders.items():
                        wall, cpu = time.perf_counter(), time.process_time()
                        for batch in batches:
                            encoder.encode(batch)
                        times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
                result[f"{folder.name}, {threads} threads"] = _speeds(times, size / 1e6)
        return result

    def _auto_differs(self, texts: list[str]) -> int:
        if not texts:
            return 0
        expected = self.processor.encode(texts, out_type="numpy", num_threads=2)
        actual = self.auto(texts, verbose=False)["input_ids"]
        bos = self.auto.bos_token_id
        return sum([bos, *ids.tolist()] != found for ids, found in zip(expected, actual, strict=True))


def _fuzzed(pieces: Sequence[str], generator: random.Random) -> str:
    """Return a random string of 1 to 20 parts."""

    def part() -> str:
        kind = generator.random()
        if kind < 0.6:
            return generator.choice(pieces)
        if kind < 0.75:
            return generator.choice(_SPACES) * generator.choice((1, 1, 1, 2, 3, 17))
        if kind < 0.8:
            return generator.choice(("<s>", "</s>", "<unk>", "<0x0A>", "<", "▁"))
        top = generator.choice((0x80, 0x500, 0x3100, 0xD800, 0x110000))
        letter = generator.randrange(top)
        return chr(letter if not 0xD800 <= letter < 0xE000 else 0xFFFD)

    return "".join(part() for _ in range(generator.randint(1, 20)))


def _batches(folder: Path, num_bytes: float) -> tuple[list[list[str]], int]:
    """Read documents, from every file in turn, up to a number of bytes; cut into batches of two million characters."""
    texts = [[text for _, record in read_jsonl(path) for text in _texts(record)] for path in sorted(folder.iterdir())]
    batches: list[list[str]] = [[]]
    size = characters = 0
    for place in range(max(map(len, texts))):
        for document in (file[place] for file in texts if place < len(file)):
            if size >= num_bytes:
                return batches, size
            if characters >= _BATCH_CHARACTERS:
                batches.append([])
                characters = 0
            batches[-1].append(document)
            size += len(document.encode())
            characters += len(document)
    return batches, size


def _speeds(times: dict[str, list[tuple[float, float]]], megabytes: float) -> dict[str, Any]:
    speeds: dict[str, Any] = {"megabytes": round(megabytes, 2)}
    for name, pairs in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        speeds[name] = {"MB_per_second": round(megabytes / wall, 2), "MB_per_cpu_second": round(megabytes / cpu, 2)}
    for column, key in enumerate(("times_sentencepiece", "times_sentencepiece_cpu")):
        ratios = [a[column] / b[column] for a, b in zip(times["sentencepiece"], times["gigatoken"], strict=True)]
        speeds["gigatoken"][key] = round(statistics.median(ratios), 2)
    return speeds


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
