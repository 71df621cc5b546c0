"""What quantising cost and saved: bytes on disk, bits per byte of held-out text, tokens a second, peak memory."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from colossal_llama2.model.inference import LoadedModel, load_for_inference
from colossal_llama2.model.weights import find_weights
from colossal_llama2.report.evaluation import Text, evaluate

_GENERATED = 32
_REPEATS = 3


@dataclass(frozen=True)
class Measured:
    """A model folder's figures.

    Attributes:
        weight_bytes: of its weight files.
        bits_per_byte: of the held-out text.
        tokens_per_second: of one greedy answer; the median of three.
    """

    weight_bytes: int
    bits_per_byte: float | None = None
    tokens_per_second: float | None = None


def measure(model_dir: Path, texts: Sequence[Text], device: str) -> Measured:
    """Weigh a folder, and where there are texts, load it as chat and evaluation do, score them and let it answer."""
    stored = weight_bytes(model_dir)
    if not texts:
        return Measured(stored)
    loaded = load_for_inference(model_dir, device)
    with tqdm(desc="evaluation", unit=" tokens", disable=not sys.stderr.isatty(), leave=False) as bar:
        score = evaluate(
            loaded.model, loaded.encoder, texts, loaded.document_start, loaded.context_length, progress=bar.update
        )
    speed = _tokens_per_second(loaded, texts[0])
    del loaded
    gc.collect()
    return Measured(stored, score.bits_per_byte, speed)


def weight_bytes(model_dir: Path) -> int:
    """Return the bytes of a folder's weight files."""
    return sum(path.stat().st_size for path in find_weights(model_dir).paths)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the most bytes this process has held so far: of the host, and of the device that torch allocated."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated(device)
    return peak


@torch.no_grad()
def _tokens_per_second(loaded: LoadedModel, text: Text) -> float | None:
    """Time greedy generation behind the beginning of a text; None where the context holds no prompt beside it."""
    begin = loaded.encoder.encode([text.source + text.target]).ids[:_GENERATED]
    prompt = torch.tensor([[loaded.document_start, *begin.tolist()]], device=loaded.device)
    if prompt.shape[1] + _GENERATED > loaded.context_length:
        return None
    model: Any = loaded.model
    seconds = []
    for _ in range(1 + _REPEATS):  # the first one warms up
        started = time.perf_counter()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            min_new_tokens=_GENERATED,
            max_new_tokens=_GENERATED,
            pad_token_id=loaded.document_start,
        )
        seconds.append(time.perf_counter() - started)
    return _GENERATED / statistics.median(seconds[1:])
