"""The flags of `tools/quantize.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colossal_llama2.model.quantizing import Method


@dataclass(frozen=True)
class QuantizeSettings:
    """Quantise a model, and measure what that costs on held-out text.

    The linear layers are rounded; input embedding, norms and output head keep the precision they are stored in.
    """

    model: Path
    """Model folder, its tokenizer inside."""
    output: Path
    """Folder to write the quantised model to."""
    method: Method
    """int8: nearest of 8 bits, a scale a row. int4-gptq: GPTQ on the calibration text. nf4: bitsandbytes' 4 bits."""
    calibration: Path | None = None
    """Text that int4-gptq rounds by: jsonl of pretraining records (source, target), or plain text whose paragraphs are
    documents. int8 and nf4 need none."""
    evaluation: Path | None = None
    """Held-out text to measure bits per byte on, before and after; the same formats (default: nothing is measured)."""
    group_size: int | None = None
    """Columns that share a scale in int4-gptq (default: 128); a matrix it does not divide gets the largest multiple of
    8 below it that does, and that is said."""
    calibration_samples: int = 128
    """Rows of calibration text."""
    calibration_length: int | None = None
    """Tokens of such a row (default: 2048, or the model's context where that is shorter)."""
    seed: int = 42
    """Decides which documents of the calibration text come first."""
    quantize_head: bool = False
    """Round the output head as well; not for a model whose head is its input embedding."""
    device: str = "auto"
    """Where to compute and measure: auto, cpu, cuda, cuda:1 ..."""
    overwrite: bool = False
    """Replace the output folder if it exists."""
