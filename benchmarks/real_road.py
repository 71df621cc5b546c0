"""The whole road on real input, on a machine without a GPU, with a kill in the middle.

    python benchmarks/real_road.py --data DIR [--output FILE.json]

DIR holds ``llama2_tokenizer/`` (a SentencePiece tokenizer), ``pieces_zh_20k.jsonl`` (a piece list) and ``pretrain/``
(jsonl of source, target, category). The road: expand the tokenizer, initialise a random Llama of 4 layers, prepare the
corpus (2048 tokens, 10 buckets), train 30 steps on two ranks; the same again, killed with SIGKILL in the middle and
resumed. Every step's loss must be the same to the last bit, and every token of every file must come out, against
SentencePiece's own count.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.errors import InputError

ROOT = Path(__file__).parents[1]
STEPS, SAVE_INTERVAL, KILL_AT = 30, 10, 17


@dataclass(frozen=True)
class RealRoad:
    """Walk the whole road on real input and write down what was measured."""

    data: Path
    """Folder with llama2_tokenizer/, pieces_zh_20k.jsonl and pretrain/."""
    output: Path = ROOT / "benchmarks" / "results" / "real_road.json"
    """Where the result is written."""
    work_dir: Path | None = None
    """Where the road is walked (default: a temporary folder)."""


def main(settings: RealRoad) -> int:
    """Walk it; exit 1 when a promise is broken."""
    for name in ("llama2_tokenizer", "pieces_zh_20k.jsonl", "pretrain"):
        if not (settings.data / name).exists():
            raise InputError("does not exist", path=settings.data / name, remedy="see --help for what --data must hold")
    with tempfile.TemporaryDirectory() as temporary:
        work = settings.work_dir or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {"machine": describe_machine(), "seconds": {}}
        timed = _timer(result["seconds"])
        timed("init_tokenizer", lambda: _init_tokenizer(settings.data, work))
        timed("make base model", lambda: _make_base(settings.data, work))
        timed("init_model", lambda: _init_model(work))
        timed("prepare_pretrain_dataset", lambda: _prepare(settings.data, work))
        whole = timed("30 steps", lambda: _train_whole(work))
        resumed = timed("30 steps, killed and resumed", lambda: _train_killed(work))
        result |= _compare(whole, resumed)
        result["tokenizer"] = _expansion(work)
        result["corpus"] = timed("independent recount", lambda: _recount(settings.data, work))
    settings.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2, ensure_ascii=False))
    return 0 if result["losses_equal"] and result["corpus"]["files_equal"] else 1


def _timer(seconds: dict[str, float]) -> Callable[[str, Callable[[], Any]], Any]:
    def timed(name: str, act: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = act()
        seconds[name] = round(time.perf_counter() - start, 1)
        print(f"-- {name}: {seconds[name]} s", flush=True)
        return result

    return timed


def _run(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True, cwd=ROOT)


def _init_tokenizer(data: Path, work: Path) -> None:
    _run(
        "tools/init_tokenizer.py",
        "--source_tokenizer_dir", data / "llama2_tokenizer",
        "--target_tokenizer_dir", work / "tokenizer",
        "--expand_tokens_file", data / "pieces_zh_20k.jsonl",
        "--overwrite",
    )  # fmt: skip


def _make_base(data: Path, work: Path) -> None:
    """Random weights in Llama's shape, small enough for two cores, with the real vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=4096,
    )
    LlamaForCausalLM(config).save_pretrained(work / "base")
    for path in (data / "llama2_tokenizer").iterdir():
        shutil.copyfile(path, work / "base" / path.name)


def _init_model(work: Path) -> None:
    _run(
        "tools/init_model.py",
        "--source_model_and_tokenizer_path", work / "base",
        "--target_tokenizer_path", work / "tokenizer",
        "--target_model_path", work / "model",
        "--overwrite",
    )  # fmt: skip


def _prepare(data: Path, work: Path) -> None:
    _run(
        "tools/prepare_pretrain_dataset.py",
        "--data_input_dirs", f"{data / 'pretrain' / 'zh'},{data / 'pretrain' / 'en'}",
        "--tokenizer_dir", work / "tokenizer",
        "--data_cache_dir", work / "cache",
        "--data_jsonl_output_dir", work / "jsonl",
        "--data_arrow_output_dir", work / "arrow",
        "--max_length", 2048,
        "--num_spliced_dataset_bins", 10,
        "--overwrite",
    )  # fmt: skip


def _train_command(work: Path, name: str, *more: object) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py",
        "--pretrained", str(work / "model"),
        "--dataset", str(work / "arrow"),
        "--plugin", "zero2",
        "--mixed_precision", "bf16",
        "--max_length", "2048",
        "--max_steps", str(STEPS),
        "--save_interval", str(SAVE_INTERVAL),
        "--save_dir", str(work / name),
        *map(str, more),
    ]  # fmt: skip


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _losses(work: Path, name: str) -> list[list[float]]:
    lines = (work / name / "run" / "metrics.jsonl").read_text().splitlines()
    return [[entry["step"], entry["loss"], entry["grad_norm"], entry["tokens"]] for entry in map(json.loads, lines)]


def _train_whole(work: Path) -> list[list[float]]:
    subprocess.run(_train_command(work, "whole", "--overwrite"), check=True, cwd=ROOT, env=_environment())
    return _losses(work, "whole")


def _train_killed(work: Path) -> dict[str, Any]:
    """Kill every process of the run once step KILL_AT is in the metrics, then resume from the latest checkpoint."""
    shutil.rmtree(work / "killed", ignore_errors=True)  # metrics of an earlier walk would kill this run at once
    command = _train_command(work, "killed")
    process = subprocess.Popen(command, cwd=ROOT, env=_environment(), start_new_session=True)
    metrics = work / "killed" / "run" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") >= KILL_AT):
        if process.poll() is not None:
            raise RuntimeError("the run ended before it could be killed")
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    lost = _losses(work, "killed")[-1][0]
    command = _train_command(work, "killed", "--load_checkpoint", "latest")
    subprocess.run(command, check=True, cwd=ROOT, env=_environment())
    return {"killed_after_step": lost, "losses": _losses(work, "killed")}


def _compare(whole: list[list[float]], resumed: dict[str, Any]) -> dict[str, Any]:
    return {
        "ranks": 2,
        "steps": len(whole),
        "killed_after_step": resumed["killed_after_step"],
        "resumed_from_step": resumed["killed_after_step"] // SAVE_INTERVAL * SAVE_INTERVAL,
        "losses_equal": len(whole) == STEPS and whole == resumed["losses"],
        "first_and_last_loss": [whole[0][1], whole[-1][1]],
        "step_loss_grad_norm_tokens": whole,
    }


def _expansion(work: Path) -> dict[str, Any]:
    content = json.loads((work / "tokenizer" / "expansion.json").read_text(encoding="utf-8"))
    return {"tokens_before": content["base_tokens"], "tokens_after": content["num_tokens"], **content["counts"]}


def _recount(data: Path, work: Path) -> dict[str, Any]:
    """Count every file's tokens with SentencePiece alone, and every bucket's from the Arrow files."""
    import datasets
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(work / "tokenizer" / "tokenizer.model"))
    manifest = json.loads((work / "arrow" / "manifest.json").read_text(encoding="utf-8"))
    files = (work / "arrow" / "files.jsonl").read_text(encoding="utf-8").splitlines()
    ledger = {entry["file"]: entry["tokens"] for entry in map(json.loads, files)}
    counted: dict[str, int] = {}
    for path in sorted((data / "pretrain").rglob("*.jsonl")):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        ids = processor.encode([record["source"] + record["target"] for record in records], num_threads=2)
        counted[f"{path.parent.name}/{path.name}"] = sum(len(entry) + 2 for entry in ids)  # bos and eos
    written = 0
    for part in sorted((work / "arrow").glob("part-*")):
        rows = datasets.load_from_disk(str(part)).with_format("numpy")
        written += sum(len(row) for row in rows["input_ids"])
    return {
        "files_equal": counted == ledger and sum(counted.values()) == written,
        "tokens_by_sentencepiece": sum(counted.values()),
        "tokens_in_ledger": sum(ledger.values()),
        "tokens_in_arrow": written,
        "tokens_per_file": counted,
        "rows": manifest["totals"]["rows"],
        "fill": manifest["totals"]["fill"],
    }


if __name__ == "__main__":
    cli.run(RealRoad, main)
