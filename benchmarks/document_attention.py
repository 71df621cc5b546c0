"""What does attention by document cost on this machine, beside one dense masked matrix, and would batching pay?

    python benchmarks/document_attention.py

Forward and backward of one layer's attention, 8 query heads that share 2 of keys and values. dense: one call with the
mask of all documents. documents: `document_attention`, one call a document. by_length: documents of one length in one
call. padded: lengths rounded up by up to a half, which needs no mask either, because what is padded comes later than
all that is real. All ways by turns in one process, by the processor's clock (medians), and each equal to the dense one.

Predicted: dense computes rows * S^2 pairs and documents the sum of their squares, so documents wins by about S over the
mean length until what a call costs (some 0.1 ms) decides; batching saves calls and pays for gathering, so that it wins
for documents of some ten tokens alone.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.model.document_attention import Documents, document_attention

HEADS, SHARED, DEPTH = 8, 2, 64
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Documents], torch.Tensor]


@dataclass(frozen=True)
class Settings:
    """Measure attention by document against the dense masked form."""

    tokens: int = 1024
    """Tokens of a row."""
    rows: int = 2
    """Rows of a micro-batch."""
    repeats: int = 5
    """Times each way is measured, by turns."""
    output: Path = Path(__file__).resolve().parent / "results" / "document_attention.json"
    """File to write the result to."""


def main(settings: Settings) -> None:
    """Measure all ways over rows of several kinds and write what came out."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for kind in ("10-40", "8-120", "128", "500", "whole"):
            lengths = _lengths(kind, settings)
            times = _measure(lengths, settings, dtype, device)
            name = f"{str(dtype).removeprefix('torch.')}, documents of {kind} tokens"
            found[name] = {"documents": len(lengths), "milliseconds": times}
            cli.say(f"{name} ({len(lengths)}): " + ", ".join(f"{way} {ms:.0f} ms" for way, ms in times.items()))
    content = {
        "machine": describe_machine(),
        "threads": torch.get_num_threads(),
        "settings": {name: getattr(settings, name) for name in ("tokens", "rows", "repeats")},
        "found": found,
    }
    settings.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _lengths(kind: str, settings: Settings) -> list[int]:
    least, _, most = kind.partition("-")
    generator = random.Random(0)
    lengths = []
    for _ in range(settings.rows):
        left = settings.tokens
        while left:
            drawn = settings.tokens if kind == "whole" else generator.randint(int(least), int(most or least))
            lengths.append(min(left, drawn))
            left -= lengths[-1]
    return lengths


def _measure(lengths: list[int], settings: Settings, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    torch.manual_seed(0)
    shapes = [(settings.rows, heads, settings.tokens, DEPTH) for heads in (HEADS, SHARED, SHARED)]
    q, k, v = (torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in shapes)
    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    documents = Documents.of(bounds, bounds.to(device))
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    expected = _dense(q, k, v, documents).detach()
    for attend in WAYS.values():
        torch.testing.assert_close(attend(q, k, v, documents), expected, rtol=5e-2, atol=5e-2)
    for _ in range(settings.repeats):
        for way, attend in WAYS.items():
            began = time.process_time()
            output = attend(q, k, v, documents)
            torch.autograd.grad(output, (q, k, v), torch.ones_like(output))
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[way].append((time.process_time() - began) * 1e3)
    return {way: round(statistics.median(values), 2) for way, values in times.items()}


def _dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents) -> torch.Tensor:
    rows, _, tokens, _ = query.shape
    lengths = torch.tensor(documents.lengths, device=query.device)
    document = torch.arange(len(lengths), device=query.device).repeat_interleave(lengths).view(rows, tokens)
    earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
    mask = (document[:, :, None] == document[:, None, :]) & earlier
    key, value = (tensor.repeat_interleave(HEADS // SHARED, dim=1) for tensor in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None]).transpose(1, 2)


def _documents(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents) -> torch.Tensor:
    return document_attention(torch.nn.Module(), query, key, value, None, documents=documents)[0]


def _by_length(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents) -> torch.Tensor:
    return _grouped((query, key, value), documents, lambda length: length)


def _padded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Documents) -> torch.Tensor:
    def rounded(length: int) -> int:
        size = 16
        while size < length:
            size += size // 2
        return size

    return _grouped((query, key, value), documents, rounded)


def _grouped(tensors: tuple[torch.Tensor, ...], documents: Documents, size_of: Callable[[int], int]) -> torch.Tensor:
    """Gather documents by the size of their group, attend once a group, and put everything back in its place."""
    rows, heads, tokens, depth = tensors[0].shape
    flat = [tensor.transpose(1, 2).reshape(-1, tensor.shape[1], depth) for tensor in tensors]
    groups: dict[int, list[tuple[int, int]]] = {}
    for start, length in zip(itertools.accumulate([0, *documents.lengths]), documents.lengths, strict=False):
        groups.setdefault(size_of(length), []).append((start, length))
    outputs, places = [], []
    for size, members in groups.items():
        starts, lengths = torch.tensor(members, device=flat[0].device).T[:, :, None]
        position = torch.arange(size, device=flat[0].device)
        index = (starts + position.minimum(lengths - 1)).reshape(-1)
        q, k, v = (tensor.index_select(0, index).view(len(members), size, -1, depth).transpose(1, 2) for tensor in flat)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
        real = (position < lengths).reshape(-1)
        outputs.append(attended.reshape(-1, heads, depth)[real])
        places.append(index[real])
    back = torch.empty(rows * tokens, dtype=torch.long, device=flat[0].device)
    back[torch.cat(places)] = torch.arange(rows * tokens, device=back.device)
    return torch.cat(outputs).index_select(0, back).view(rows, tokens, heads, depth)


WAYS: dict[str, Attend] = {"dense": _dense, "documents": _documents, "by_length": _by_length, "padded": _padded}

if __name__ == "__main__":
    cli.run(Settings, main)
