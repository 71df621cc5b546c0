"""How long does init_model take against copying the same bytes, and how much memory does it hold?

    python benchmarks/init_model.py --data DIR

A model of Llama-2 7B's shape, but with few layers to spare the disk (bfloat16, random weights, two gigabytes a file),
is expanded from 32,000 to 55,296 rows. Beside it, in the same run: the written weight files are copied, flushed to the
disk as init_model flushes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.tokenizer.init_tokenizer import Settings as ExpandSettings
from colossal_llama2.tokenizer.init_tokenizer import main as init_tokenizer
from colossal_llama2.tokenizer.piece_model import piece_ids, read_piece_model

_ROOT = Path(__file__).resolve().parents[1]
_COMMAND = [sys.executable, str(_ROOT / "tools" / "init_model.py")]
_ROWS, _TARGET_ROWS, _WIDTH = 32_000, 55_296, 4096


@dataclass(frozen=True)
class Settings:
    """Expand a 7B-shaped model and copy the same bytes, in turns."""

    data: Path
    """Folder with llama2_tokenizer/ and pieces_zh_20k.jsonl."""

    num_layers: int = 6
    """Layers of the model, 405 MB each."""

    repeats: int = 3
    """How often each is done; the fastest counts."""

    output: Path = Path(__file__).resolve().parent / "results" / "init_model.json"
    """File to write the result to."""


def main(settings: Settings) -> None:
    """Make the model, expand and copy in turns, save the times."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_model(folder / "model", settings)
        _make_tokenizer(folder, settings)
        runs = []
        for _ in range(settings.repeats):
            seconds, rss = _run_init_model(folder)
            runs.append(
                {"init_model_s": seconds, "peak_rss_mb": rss, "start_up_s": _start_up(), "copy_s": _copy(folder)}
            )
            cli.say(str(runs[-1]))
        size = sum(path.stat().st_size for path in (folder / "target").glob("*.safetensors"))
    best = {key: min(run[key] for run in runs) for key in ("init_model_s", "start_up_s", "copy_s")}
    result = {
        "machine": describe_machine(),
        "rows": [_ROWS, _TARGET_ROWS],
        "width": _WIDTH,
        "layers": settings.num_layers,
        "dtype": "bfloat16",
        "bytes_written": size,
        "embedding_bytes": 2 * _TARGET_ROWS * _WIDTH * 2,
        "runs": runs,
        "best": best,
        "ratio": round(best["init_model_s"] / best["copy_s"], 2),
        "ratio_without_start_up": round((best["init_model_s"] - best["start_up_s"]) / best["copy_s"], 2),
        "peak_rss_mb": max(run["peak_rss_mb"] for run in runs),
    }
    cli.say(f"ratio to the copy {result['ratio']}, without start-up {result['ratio_without_start_up']}")
    cli.say(f"peak RSS {result['peak_rss_mb']} MB, {size / 1e9:.2f} GB written")
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _make_model(folder: Path, settings: Settings) -> None:
    config = LlamaConfig(
        vocab_size=_ROWS,
        hidden_size=_WIDTH,
        intermediate_size=11_008,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=32,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    shutil.copytree(settings.data / "llama2_tokenizer", folder, dirs_exist_ok=True)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in _shapes(settings.num_layers):
        if sum(2 * torch.Size(s).numel() for s in shards[-1].values()) > 2e9:
            shards.append({})
        shards[-1][name] = shape
    weight_map = {}
    for index, shard in enumerate(shards, 1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in shard.items()}
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _shapes(num_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (_ROWS, _WIDTH)
    for layer in range(num_layers):
        for name in "qkvo":
            yield f"model.layers.{layer}.self_attn.{name}_proj.weight", (_WIDTH, _WIDTH)
        yield f"model.layers.{layer}.mlp.gate_proj.weight", (11_008, _WIDTH)
        yield f"model.layers.{layer}.mlp.up_proj.weight", (11_008, _WIDTH)
        yield f"model.layers.{layer}.mlp.down_proj.weight", (_WIDTH, 11_008)
        yield f"model.layers.{layer}.input_layernorm.weight", (_WIDTH,)
        yield f"model.layers.{layer}.post_attention_layernorm.weight", (_WIDTH,)
    yield "model.norm.weight", (_WIDTH,)
    yield "lm_head.weight", (_ROWS, _WIDTH)


def _make_tokenizer(folder: Path, settings: Settings) -> None:
    """Expand by the given list, and by pairs of its characters up to the number of rows wanted."""
    known = piece_ids(read_piece_model(settings.data / "llama2_tokenizer" / "tokenizer.model"))
    lines = (settings.data / "pieces_zh_20k.jsonl").read_text(encoding="utf-8").splitlines()
    pieces = list(dict.fromkeys(json.loads(line)["piece"] for line in lines))
    taken = {*known, *pieces}
    new = [piece for piece in pieces if piece not in known]
    characters = [piece for piece in pieces if len(piece) == 1 and "一" <= piece <= "龥"]
    pairs = (left + right for step in range(1, 20) for left, right in zip(characters, characters[step:], strict=False))
    for pair in pairs:
        if len(new) == _TARGET_ROWS - _ROWS:
            break
        if pair not in taken:
            new.append(pair)
            taken.add(pair)
    text = "".join(json.dumps({"piece": piece}, ensure_ascii=False) + "\n" for piece in new)
    (folder / "pieces.jsonl").write_text(text, encoding="utf-8")
    init_tokenizer(ExpandSettings(folder / "model", folder / "tokenizer", folder / "pieces.jsonl"))


def _run_init_model(folder: Path) -> tuple[float, int]:
    """Run the command as a user would; return seconds, start-up included, and its peak resident memory in MB."""
    shutil.rmtree(folder / "target", ignore_errors=True)
    flags = ["--source_model_and_tokenizer_path", folder / "model", "--target_tokenizer_path", folder / "tokenizer"]
    started = time.perf_counter()
    process = subprocess.Popen([*_COMMAND, *map(str, flags), "--target_model_path", str(folder / "target")])
    peak = 0
    while process.poll() is None:
        # The high-water mark of the process itself: what wait4 reports begins with its parent's.
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
            peak = max([peak, *(int(line.split()[1]) for line in status if line.startswith("VmHWM"))])
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError("init_model failed")
    return round(seconds, 2), peak // 1024


def _start_up() -> float:
    """Return the seconds that the command takes to import what it needs and do nothing."""
    started = time.perf_counter()
    subprocess.run([*_COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
    return round(time.perf_counter() - started, 2)


def _copy(folder: Path) -> float:
    """Copy the written weights, flushed to the disk; return seconds."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    started = time.perf_counter()
    for path in sorted((folder / "target").glob("*.safetensors")):
        shutil.copyfile(path, copy / path.name)
    for path in copy.iterdir():
        descriptor: Any = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return round(time.perf_counter() - started, 2)


if __name__ == "__main__":
    cli.run(Settings, main)
