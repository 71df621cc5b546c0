"""Reports on new rows say what weights and corpus say, under every plugin; they change nothing, and go on as they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.order import epoch_order
from colossal_llama2.tokenizer.expansion import new_tokens

STEPS, ROWS, SEED = 4, 8, 3
FLAGS = ["--max_steps", STEPS, "--lr", 1e-2, "--warmup_steps", 1, "--seed", SEED]
HEAD, INPUT = "lm_head.weight", "model.embed_tokens.weight"
EVERY_2 = ["--new_rows_interval", 2]


def division(plugin: str) -> list[object]:
    """Eight rows a step on two ranks, in two micro-batches each."""
    same_rows = any(flag in plugin for flag in ("--tp", "--pp", "--sp"))
    return ["--micro_batch_size", 4 if same_rows else 2, "--accumulation_steps", 2, "--plugin", *plugin.split()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def expected_figures(start: Path, end: Path, name: str) -> dict[str, float]:
    """Work the figures out anew, from the model as it was and as it is."""
    rows = new_tokens(start)
    before, after = (weights(folder)[name].double().numpy() for folder in (start, end))
    then, now, old = before[rows.start : rows.stop], after[rows.start : rows.stop], after[: rows.start]
    norms = {"norm": np.linalg.norm(now, axis=1), "old_norm": np.linalg.norm(old, axis=1)}
    norms["cosine"] = (then * now).sum(1) / np.linalg.norm(then, axis=1) / norms["norm"]
    norms["distance"] = np.linalg.norm(now - then, axis=1) / np.linalg.norm(then, axis=1)
    return {
        f"{name}_{word}": float(getattr(values, word)())
        for name, values in norms.items()
        for word in ("mean", "min", "max")
    }


def seen_tokens(corpus_dir: Path, steps: int) -> tuple[set[int], set[int]]:
    """Return the tokens that stand before a learned label of their document, and those that are learned."""
    corpus = PreparedCorpus.open([corpus_dir])
    inputs, labels = set(), set()
    for index in epoch_order(corpus.bucket_sizes, SEED, 0)[: steps * ROWS]:
        row, begin = corpus.row(int(index)), 0
        for length in row.seq_lens.tolist():
            learned = [begin + place for place in range(1, length) if row.labels[begin + place] != -100]
            labels |= {int(row.labels[place]) for place in learned}
            inputs |= {int(row.input_ids[place]) for place in range(begin, max(learned, default=begin))}
            begin += length
    return inputs, labels


LONG = [
    pytest.param(plugin, precision, dtype, tied, marks=pytest.mark.long)
    for plugin, precision in (
        ("zero2", "bf16"),
        ("zero2_cpu", "bf16"),
        ("gemini", "fp16"),
        ("gemini_auto", "bf16"),
        ("ddp", "bf16"),
        ("3d --tp 2", "bf16"),
        ("3d --pp 2", "bf16"),
        ("3d --zero 1", "bf16"),
        ("3d --zero 2", "bf16"),
        ("3d --sp 2", "bf16"),
        ("3d --tp 2 --sp 2 --sp_mode split_gather", "bf16"),
        ("3d --pp 2 --pp_chunks 2", "fp32 --zero 0"),
    )
    for dtype, tied in (("bfloat16", False), ("float32", True), ("float32", False))
]


@pytest.mark.parametrize(
    ("plugin", "precision", "dtype", "tied"),
    [
        ("zero2", "bf16", "float32", False),
        ("gemini", "bf16", "float32", True),
        ("ddp", "fp32", "float32", False),
        ("3d --tp 2", "bf16", "float32", False),
        ("3d --pp 2", "bf16", "float32", False),
        *LONG,
    ],
)
def test_figures_are_those_of_the_finished_model(
    train_on: Callable[..., Any],
    expanded: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
    plugin: str,
    precision: str,
    dtype: str,
    tied: bool,
) -> None:
    model_dir, corpus = expanded(dtype, tied)
    flags = [*FLAGS, *division(plugin), "--mixed_precision", *precision.split(), *EVERY_2]
    run = train_on(2, tmp_path / "run", *flags, model_dir=model_dir, corpus=corpus)
    assert run.code == 0, run.output
    assert not any(line["skipped"] for line in run.metrics), "what was not learned is not counted as seen"
    assert ["new_rows" in line for line in run.metrics] == [False, True, False, True]
    assert run.output.count("new rows: norm") == 2
    figures = run.metrics[-1]["new_rows"]
    assert set(figures) >= {"input", "loss_new", "loss_old"}
    assert ("head" in figures) == (not tied)
    # the finished model has the dtype it came in, and the figures are of the fp32 masters
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    for name, matrix in (("input", INPUT), ("head", HEAD))[: 1 if tied else 2]:
        expected = expected_figures(model_dir, tmp_path / "run" / "modeling", matrix)
        assert {key: figures[name][key] for key in expected} == pytest.approx(expected, rel=tolerance, abs=tolerance)
        assert figures[name]["distance_min"] > 0 or name == "input"
    rows = new_tokens(model_dir)
    for place, line in ((2, run.metrics[1]), (4, run.metrics[3])):
        inputs, labels = ({token for token in seen if token in rows} for seen in seen_tokens(corpus, place))
        inputs = inputs | labels if tied else inputs
        assert 0 < len(inputs) < len(rows), "all or nothing would show little"
        assert line["new_rows"]["input"]["never_updated"] == pytest.approx(1 - len(inputs) / len(rows))
        if not tied:
            assert line["new_rows"]["head"]["never_a_label"] == pytest.approx(1 - len(labels) / len(rows))
