"""What do 8 and 4 bits cost a trained model, and does memory come out as predicted?

    python benchmarks/quantize.py --model demo-run/replay/modeling --calibration examples/corpus/chinese.jsonl \
        examples/corpus/english.jsonl --evaluation examples/corpus/chinese_heldout.jsonl \
        examples/corpus/english_heldout.jsonl

`tools/quantize.py` makes each folder, `tools/evaluate.py` scores all of them file by file. Beside GPTQ stands rounding
to the nearest with the same groups, which is what the calibration text is for. Memory is measured on a larger model of
random weights, in a process for each format: resident memory while it answers, beyond what lay there before loading.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.model.gptq import Grid, round_to_nearest
from colossal_llama2.model.inference import load_for_inference
from colossal_llama2.model.inference_memory import Answering, predict_inference
from colossal_llama2.model.model_shape import read_model_shape
from colossal_llama2.model.quantized import stay_packed
from colossal_llama2.model.quantizing import group_size_for, linear_layers

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("int8", "int4-gptq", "nf4")
MOST_LOSS_PERCENT = {"int8": 2.0, "int4-gptq": 6.0, "nf4": 6.0}
_MEMORY_TOKENS = 128


@dataclass(frozen=True)
class Settings:
    """Quantise a trained model in every way and measure it."""

    model: Path
    """A trained model's folder: random weights prove nothing."""
    calibration: tuple[Path, ...] = ()
    """Files of records to round by."""
    evaluation: tuple[Path, ...] = ()
    """Held-out files of records."""
    samples: int = 64
    """Rows of calibration text."""
    output: Path = Path(__file__).resolve().parent / "results" / "quantize.json"
    """File to write the result to."""
    memory_of: str = ""
    """Measure one format of the folder --model in this process, and print its bytes."""


def main(settings: Settings) -> int:
    """Measure, write the result, and return 1 when a method loses more than it may."""
    if settings.memory_of:
        print(json.dumps(_measure_memory(settings.model, settings.memory_of)))
        return 0
    with tempfile.TemporaryDirectory(prefix="quantize-") as folder:
        work = Path(folder)
        records = {method: _quantize(settings, method, work) for method in METHODS}
        nearest = _nearest(settings, work / "int4-nearest")
        scores = _scores(settings, [settings.model, *(work / name for name in (*METHODS, nearest))])
        speeds = _speeds(settings, [settings.model, *(work / name for name in METHODS)])
        memory = _memory(work)
    losses = {name: _losses(scores, name) for name in (*METHODS, nearest)}
    content = {
        "machine": describe_machine(),
        "model": _describe(settings.model),
        "calibration": [path.name for path in settings.calibration],
        "scores": scores,
        "bits_per_byte_growth_percent": losses,
        "tokens_per_second": speeds,
        "records": records,
        "memory": memory,
    }
    settings.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, of_files in losses.items():
        cli.say(f"{name:>13}: " + ", ".join(f"{file} {loss:+.2f}%" for file, loss in of_files.items()))
    for line in memory["formats"]:
        cli.say(f"{line['stored']:>13}: {line['measured_mb']:.0f} MB measured, {line['predicted_mb']:.0f} predicted")
    return int(any(max(losses[method].values()) > most for method, most in MOST_LOSS_PERCENT.items()))


def _run(*arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def _joined(paths: tuple[Path, ...], target: Path) -> Path:
    target.write_text("".join(path.read_text(encoding="utf-8") for path in paths), encoding="utf-8")
    return target


def _quantize(settings: Settings, method: str, work: Path) -> dict[str, Any]:
    flags: list[object] = ["--calibration", _joined(settings.calibration, work / "calibration.jsonl")]
    flags += ["--evaluation", _joined(settings.evaluation, work / "evaluation.jsonl")]
    flags += ["--calibration_samples", str(settings.samples)]
    flags += ["--model", settings.model, "--output", work / method, "--method", method]
    cli.say(_run(ROOT / "tools" / "quantize.py", *flags).rstrip())
    record: dict[str, Any] = json.loads((work / method / "quantization.json").read_text(encoding="utf-8"))
    return record


def _nearest(settings: Settings, folder: Path) -> str:
    """Write the model with its linear layers rounded to the nearest of 4 bits, as plain numbers."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(settings.model, folder)
    for path in folder.glob("model*"):
        path.unlink()
    model = AutoModelForCausalLM.from_pretrained(settings.model, dtype="auto")
    for name in linear_layers(settings.model, with_head=False):
        weight = model.get_parameter(name)
        grid = Grid(4, group_size_for(weight.shape[1], 128))
        weight.data = round_to_nearest(weight.data, grid).dense().to(weight.dtype)
    model.save_pretrained(folder)
    return folder.name


def _scores(settings: Settings, folders: list[Path]) -> dict[str, dict[str, float]]:
    output = folders[-1].parent / "scores.json"
    _run(ROOT / "tools" / "evaluate.py", "--model", *folders, "--data", *settings.evaluation, "--output", output)
    found: dict[str, dict[str, float]] = {}
    for line in json.loads(output.read_text(encoding="utf-8"))["scores"]:
        is_source = Path(line["model"]) == settings.model
        name = "before" if is_source else Path(line["model"]).name
        found.setdefault(name, {})[Path(line["file"]).name] = line["bits_per_byte"]
    return found


def _speeds(settings: Settings, folders: list[Path]) -> dict[str, float]:
    """Let the models answer by turns, five times, and return the tokens a second of each one's fastest."""
    models = {folder.name: load_for_inference(folder, "cpu").model for folder in folders}
    prompt = torch.ones(1, _MEMORY_TOKENS // 2, dtype=torch.long)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(5):
        for name, model in models.items():
            began = time.perf_counter()
            _answer(model, prompt)
            seconds[name].append(time.perf_counter() - began)
    found = {name: prompt.shape[1] / min(times) for name, times in seconds.items()}
    return {"before": found.pop(settings.model.name), **found}


def _losses(scores: dict[str, dict[str, float]], name: str) -> dict[str, float]:
    return {file: 100 * (bits / scores["before"][file] - 1) for file, bits in scores[name].items()}


def _describe(model_dir: Path) -> dict[str, Any]:
    shape = read_model_shape(model_dir)
    return {
        "folder": "/".join(model_dir.parts[-3:]),
        "parameters": shape.numel,
        "hidden": shape.hidden,
        "layers": shape.layers,
        "vocabulary": shape.vocab,
        "dtype": shape.stored_dtype,
        "weights": "trained",
    }


def _memory(work: Path) -> dict[str, Any]:
    """Predict and measure each format of a model of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model_dir = work / "random"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=8,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(model_dir)
    found = [_compare(stored, model_dir, work) for stored in ("as stored", *METHODS)]
    return {"model": {**_describe(model_dir), "folder": "random", "weights": "random"}, "formats": found}


def _compare(stored: Any, model_dir: Path, work: Path) -> dict[str, Any]:
    from colossal_llama2.model.quantizing import Plan, quantize

    folder = model_dir
    if stored != "as stored":
        folder = work / f"random-{stored}"
        folder.mkdir()
        quantize(model_dir, Plan(stored), torch.randint(8192, (2, 64)), folder, lambda line: None)
    predicted = predict_inference(read_model_shape(model_dir), Answering(stored, _MEMORY_TOKENS, on_gpu=False))
    measured = json.loads(_run(Path(__file__), "--model", folder, "--memory_of", stored).splitlines()[-1])
    return {
        "stored": stored,
        "tokens": _MEMORY_TOKENS,
        "predicted": asdict(predicted),
        "predicted_mb": predicted.allocated / 1e6,
        "measured_mb": measured["bytes"] / 1e6,
        "ratio": measured["bytes"] / predicted.allocated,
    }


def _measure_memory(model_dir: Path, stored: str) -> dict[str, int]:
    """Load a folder, weights staying packed, let it answer, and return the resident bytes beyond those before."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    tiny = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    ).eval()
    prompt = torch.ones(1, _MEMORY_TOKENS // 2, dtype=torch.long)
    _answer(tiny, prompt)  # what generation itself brings into memory is no part of the model
    if stored != "as stored":
        for library in ("bitsandbytes", "compressed_tensors"):
            importlib.import_module(library)
    before = _resident()
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype="auto").eval()
    if stored in ("int8", "int4-gptq"):
        stay_packed(model)
    over, most = threading.Event(), [0]

    def look() -> None:
        while not over.wait(0.005):
            most[0] = max(most[0], _resident())

    _answer(model, prompt[:, :2])  # pages of files and of the loading are given back or counted by now
    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    _answer(model, prompt)
    over.set()
    watch.join()
    return {"bytes": most[0] - before}


@torch.no_grad()
def _answer(model: Any, prompt: torch.Tensor) -> None:
    count = _MEMORY_TOKENS - prompt.shape[1]
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=count,
        max_new_tokens=count,
        pad_token_id=0,
    )


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    cli.run(Settings, main)
