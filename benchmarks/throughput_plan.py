"""What the throughput benchmark compares: sizes of models, rows, and variants with what was expected of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from colossal_llama2.dataset.parts import Row


@dataclass(frozen=True)
class Size:
    """A model of random weights and the rows it learns.

    Attributes:
        config: of the Llama.
        length: tokens of a row.
        rows: in a step.
    """

    config: dict[str, Any]
    length: int
    rows: int


def _llama(vocabulary: int, hidden: int, mlp: int, layers: int, heads: tuple[int, int]) -> dict[str, Any]:
    shape = {"vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers}
    return {**shape, "num_attention_heads": heads[0], "num_key_value_heads": heads[1], "initializer_range": 0.02}


SIZES = {
    "toy": Size(_llama(1024, 256, 768, 4, (4, 4)), length=256, rows=4),
    "125m": Size(_llama(32000, 768, 2048, 12, (12, 12)), length=2048, rows=8),
    "1b": Size(_llama(69104, 2048, 8192, 16, (32, 8)), length=4096, rows=4),
    "7b": Size(_llama(69104, 4096, 11008, 32, (32, 32)), length=4096, rows=1),
}


@dataclass(frozen=True)
class Variant:
    """One way to train, and what was expected of it before it was measured.

    Attributes:
        contender: whose loop: ``ours``, ``trainer`` or ``plain``.
        flags: more flags of train.py, or names that the contender knows.
        against: variant that it is compared with.
        predicted: factor on its tokens per second, None where nothing was predicted.
        because: the reason for the prediction.
    """

    contender: str
    flags: tuple[str, ...] = ()
    against: str = "trainer"
    predicted: float | None = None
    because: str = ""


VARIANTS = {
    "ours": Variant(
        "ours",
        predicted=1.0,
        because="on a CPU the same kernels do the same arithmetic; only the loops differ",
    ),
    "trainer": Variant("trainer"),
    "plain": Variant("plain", predicted=1.01, because="a loop of ten lines has nothing to do but the arithmetic"),
    "ours_read_at_once": Variant(
        "ours",
        ("read_at_once",),
        against="ours",
        predicted=0.99,
        because="CUDA: the device runs dry once a step for the time of queueing the next forward pass, some ms of 400; "
        "on a CPU nothing is read late, so 1.00",
    ),
    "ours_flash": Variant(
        "ours",
        ("--use_flash_attn",),
        against="ours",
        predicted=1.0,
        because="rows of one document: attention is one kernel either way",
    ),
    "ours_recompute": Variant(
        "ours",
        ("--use_grad_checkpoint",),
        against="ours",
        predicted=0.77,
        because="a third forward pass on top of three: 3/4, less where elementwise work weighs more",
    ),
    "ours_checkpoint_8": Variant(
        "ours",
        ("--checkpoint_layers", "8"),
        against="ours",
        predicted=0.92,
        because="8 of 32 layers go forward twice: a twelfth of the arithmetic more",
    ),
    "ours_float8": Variant(
        "ours",
        ("--float8",),
        against="ours",
        predicted=1.28,
        because="the layers' products are two thirds of a step and take 1.5 times less with their scales",
    ),
    "ours_unfused": Variant(
        "ours",
        ("--fused_kernels", "off"),
        against="ours",
        predicted=0.93,
        because="norms, rotary and SwiGLU are bound by memory and Liger's touch it half as often; without it, 1.00",
    ),
    "ours_compile": Variant(
        "ours", ("--compile",), against="ours", predicted=1.10, because="elementwise work fused by inductor"
    ),
    "ours_count_waits": Variant(
        "ours",
        ("count_waits",),
        against="ours",
        predicted=1.0,
        because="torch counts what waits for the device: one read a step, which is of the step before",
    ),
    "trainer_recompute": Variant(
        "trainer", ("recompute",), against="trainer", predicted=0.77, because="as for ours_recompute"
    ),
    "trainer_liger": Variant(
        "trainer",
        ("liger",),
        against="trainer",
        predicted=1.10,
        because="CUDA: norms, rotary and SwiGLU in one pass each, and no logits; about a tenth of a 7B step",
    ),
    "trainer_compile": Variant(
        "trainer", ("compile",), against="trainer", predicted=1.10, because="elementwise work fused by inductor"
    ),
}


class RandomRows:
    """Rows of random tokens, one document each: then plain causal attention is attention by document.

    Stands where a `PreparedCorpus` stands; the same row is the same for every contender.

    Args:
        vocabulary: tokens to draw from.
        length: of a row, in tokens.
        num_rows: of an epoch.
    """

    def __init__(self, vocabulary: int, length: int, num_rows: int = 4096) -> None:
        self._vocabulary = vocabulary
        self.max_length, self.num_rows, self.bucket_sizes = length, num_rows, [num_rows]

    def row(self, number: int) -> Row:
        """Return a row; every token but the first is learned."""
        ids = np.random.default_rng(number).integers(3, self._vocabulary, self.max_length).astype(np.int32)
        return Row(ids, ids, np.array([self.max_length], dtype=np.int32))

    def describe_row(self, number: int) -> str:
        """Name a row."""
        return f"random row {number}"
