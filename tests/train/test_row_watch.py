"""Reports on new rows say what weights and corpus say, under every plugin, and change nothing in what is trained."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.order import epoch_order
from colossal_llama2.tokenizer.expansion import new_tokens
from colossal_llama2.train.row_watch import SHOWN_ROWS

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


def seen_tokens(corpus_dir: Path, steps: list[int]) -> tuple[set[int], set[int]]:
    """Return the tokens that stand before a learned label of their document, and those that are learned, in steps."""
    corpus = PreparedCorpus.open([corpus_dir])
    inputs, labels = set(), set()
    order = epoch_order(corpus.bucket_sizes, SEED, 0)
    for index in [row for step in steps for row in order[(step - 1) * ROWS : step * ROWS]]:
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
        ("gemini", "bf16"),
        ("zero2", "fp16"),
        ("gemini_auto", "bf16"),
        ("ddp", "bf16"),
        ("3d --tp 2", "bf16"),
        ("3d --pp 2", "bf16"),
        ("3d --zero 1", "bf16"),
        ("3d --zero 2", "bf16"),
        ("3d --sp 2", "bf16"),
        ("3d --tp 2 --sp 2 --sp_mode split_gather", "bf16"),
        ("3d --pp 2 --zero 0", "fp32"),
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
    flags = [*FLAGS, *division(plugin), "--mixed_precision", precision, *EVERY_2]
    run = train_on(2, tmp_path / "run", *flags, model_dir=model_dir, corpus=corpus)
    assert run.code == 0, run.output
    assert not any(line["skipped"] for line in run.metrics)
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
        steps = list(range(1, place + 1))
        inputs, labels = ({token for token in seen if token in rows} for seen in seen_tokens(corpus, steps))
        inputs = inputs | labels if tied else inputs
        assert 0 < len(inputs) < len(rows), "all or nothing would show little"
        assert line["new_rows"]["input"]["never_updated"] == pytest.approx(1 - len(inputs) / len(rows))
        if not tied:
            assert line["new_rows"]["head"]["never_a_label"] == pytest.approx(1 - len(labels) / len(rows))


def test_the_losses_on_new_and_old_tokens_are_those_of_plain_pytorch(
    train_on: Callable[..., Any],
    expanded: Callable[..., tuple[Path, Path]],
    parity_reference: Any,
    tmp_path: Path,
) -> None:
    from transformers import AutoModelForCausalLM

    model_dir, corpus_dir = expanded()
    kind = ["--plugin", "3d", "--zero", 0, "--tp", 2, "--mixed_precision", "fp32"]
    flags = [*FLAGS, "--max_steps", 1, "--micro_batch_size", 8, *kind, "--new_rows_interval", 1]
    run = train_on(2, tmp_path / "run", *flags, model_dir=model_dir, corpus=corpus_dir)
    assert run.code == 0, run.output
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager")
    corpus, rows = PreparedCorpus.open([corpus_dir]), new_tokens(model_dir)
    order = epoch_order(corpus.bucket_sizes, SEED, 0)[:ROWS]
    losses = [pair for index in order for pair in parity_reference.row_losses(model, corpus.row(int(index)))]
    new, old = ([float(loss) for token, loss in losses if (token in rows) == which] for which in (True, False))
    assert len(new) > 2
    assert len(old) > 2
    (line,) = run.metrics
    assert line["new_rows"]["loss_new"] == pytest.approx(sum(new) / len(new), abs=1e-5)
    assert line["new_rows"]["loss_old"] == pytest.approx(sum(old) / len(old), abs=1e-5)
    assert (line["new_rows"]["new_labels"], line["new_rows"]["steps"]) == (len(new), 1)


@pytest.mark.parametrize(
    ("plugin", "ranks"), [("zero2", 1), pytest.param("zero2", 4, marks=pytest.mark.long), ("gemini", 2)]
)
def test_figures_go_on_after_a_resume_on_other_ranks(
    train_on: Callable[..., Any],
    expanded: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
    plugin: str,
    ranks: int,
) -> None:
    """The checkpoint lies in the middle of an interval: what was counted and added up before it must be in it."""
    model_dir, corpus = expanded()
    same = [*FLAGS, "--max_steps", 5, "--plugin", plugin, "--mixed_precision", "bf16", "--new_rows_interval", 5]
    same += ["--num_epochs", 2]
    whole = train_on(
        2, tmp_path / "a", *same, "--micro_batch_size", 4, "--save_interval", 3, model_dir=model_dir, corpus=corpus
    )
    assert whole.code == 0, whole.output
    checkpoint = tmp_path / "a" / "epoch-0_step-3"
    flags = [*same, "--micro_batch_size", 8 // ranks, "--load_checkpoint", checkpoint]
    other = train_on(ranks, tmp_path / "b", *flags, model_dir=model_dir, corpus=corpus)
    assert other.code == 0, other.output
    ours, theirs = other.metrics[-1]["new_rows"], whole.metrics[-1]["new_rows"]
    assert ours["steps"] == theirs["steps"] == 5
    assert ours["new_labels"] == theirs["new_labels"]
    for matrix, name in (("input", "never_updated"), ("head", "never_a_label")):
        assert 0 < ours[matrix][name] == theirs[matrix][name] < 1
    if ranks == 2:
        assert ours == theirs, "the same ranks give the same bits"
    assert ours["loss_new"] == pytest.approx(theirs["loss_new"], rel=1e-2)
    assert ours["input"] == pytest.approx(theirs["input"], rel=1e-2, abs=1e-3)


def test_a_step_that_overflowed_has_updated_nothing(
    train_on: Callable[..., Any], expanded: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    model_dir, corpus = expanded()
    flags = [*FLAGS, "--mixed_precision", "fp16", "--micro_batch_size", 8]
    first = train_on(1, tmp_path / "a", *flags, "--save_interval", 1, model_dir=model_dir, corpus=corpus)
    assert first.code == 0, first.output
    state_file = tmp_path / "a" / "epoch-0_step-1" / "running_states.json"
    state = json.loads(state_file.read_text())
    state["scaler"]["scale"] = 2.0**40
    state_file.write_text(json.dumps(state))
    resume = ["--load_checkpoint", state_file.parent, "--max_steps", 2]
    run = train_on(1, tmp_path / "b", *flags, *resume, model_dir=model_dir, corpus=corpus)
    assert run.code == 0, run.output
    assert [line["skipped"] for line in run.metrics] == [True]
    rows = new_tokens(model_dir)
    once, twice = (len(seen_tokens(corpus, steps)[0] & set(rows)) for steps in ([1], [1, 2]))
    assert once < twice, "the second step would have shown nothing"
    assert run.metrics[-1]["new_rows"]["input"]["never_updated"] == pytest.approx(1 - once / len(rows))
    assert run.metrics[-1]["new_rows"]["steps"] == 2


def test_a_checkpoint_of_before_goes_on_without_an_account(
    train_on: Callable[..., Any], expanded: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    model_dir, corpus = expanded()
    flags = [*FLAGS, "--mixed_precision", "fp32", "--micro_batch_size", 8]
    first = train_on(1, tmp_path / "a", *flags, "--save_interval", 2, model_dir=model_dir, corpus=corpus)
    assert first.code == 0, first.output
    state_file = tmp_path / "a" / "epoch-0_step-2" / "running_states.json"
    state = json.loads(state_file.read_text())
    assert state["version"] == 3
    resume = ["--load_checkpoint", state_file.parent]
    off = train_on(1, tmp_path / "b", *flags, *resume, "--new_rows_interval", 0, model_dir=model_dir, corpus=corpus)
    assert off.code == 0, off.output
    assert "its account of the new rows seen so far is given up" in off.output
    assert not any("new_rows" in line for line in off.metrics)
    del state["watched"]
    state_file.write_text(json.dumps({**state, "version": 2}))
    old = train_on(1, tmp_path / "c", *flags, *resume, model_dir=model_dir, corpus=corpus)
    assert old.code == 0, old.output
    assert "they are counted from here on" in old.output
    assert old.metrics[-1]["new_rows"]["steps"] == 2
    assert old.curve() == off.curve() == first.curve()[2:], "watching changes nothing"


def test_texts_and_scalars_are_in_tensorboard(
    train_on: Callable[..., Any], expanded: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:

    model_dir, corpus = expanded()
    flags = [*FLAGS, "--mixed_precision", "fp32", "--micro_batch_size", 8, *EVERY_2, "--train_new_rows_only"]
    run = train_on(1, tmp_path / "run", *flags, model_dir=model_dir, corpus=corpus)
    assert run.code == 0, run.output
    reading: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = reading.EventAccumulator(str(tmp_path / "run" / "run")).Reload()
    for name in ("input/norm_mean", "input/never_updated", "head/never_a_label", "head/distance_mean", "loss_new"):
        assert [event.step for event in events.Scalars(f"new_rows/{name}")] == [2, 4]
    (_, second) = events.Tensors("new_rows/input/neighbours/text_summary")
    text = second.tensor_proto.string_val[0].decode()
    shown = min(SHOWN_ROWS, len(new_tokens(model_dir)))
    assert text.count("\n") == 1 + shown, "a line a row, and two of head"
    assert "今天" in text
    start, end = (weights(folder)[INPUT].double() for folder in (model_dir, tmp_path / "run" / "modeling"))
    rows = new_tokens(model_dir)
    cosines = torch.nn.functional.cosine_similarity(end[rows.start, None], end[: rows.start], dim=1)
    assert f" {cosines.max():.2f}," in text.splitlines()[2]
    assert torch.equal(start[: rows.start], end[: rows.start])


def test_rows_that_learn_beside_an_adapter_are_reported_on(
    train_on: Callable[..., Any], expanded: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    model_dir, corpus = expanded()
    flags = [*FLAGS, "--mixed_precision", "bf16", "--micro_batch_size", 4, "--lora_rank", 2, "--train_new_rows_only"]
    run = train_on(2, tmp_path / "run", *flags, model_dir=model_dir, corpus=corpus)
    assert run.code == 0, run.output
    figures = run.metrics[-1]["new_rows"]
    assert figures["head"]["distance_min"] > 0
    trained = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    (name,) = (name for name in trained if "embed_tokens" in name)
    rows = new_tokens(model_dir)
    norms = trained[name][rows.start : rows.stop].norm(dim=1)
    assert figures["input"]["norm_mean"] == pytest.approx(float(norms.mean()), rel=1e-5)


def test_a_norm_that_runs_away_is_named_once(
    train_on: Callable[..., Any], expanded: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    model_dir, corpus = expanded()
    flags = ["--max_steps", 4, "--lr", 1.0, "--warmup_steps", 0, "--mixed_precision", "fp32", "--micro_batch_size", 8]
    flags += ["--train_new_rows_only", "--new_rows_interval", 1]
    run = train_on(1, tmp_path / "run", *flags, model_dir=model_dir, corpus=corpus)
    assert run.code == 0, run.output
    warnings = [line for line in run.output.splitlines() if "runs away" in line]
    assert warnings
    for matrix in ("input", "head"):
        named = [piece for line in warnings if f"new {matrix} rows" in line for piece in line.split("'")[1::2]]
        assert len(named) == len(set(named)) > 0, "each row once"
    assert run.metrics[-1]["new_rows"]["head"]["runaways"] > 0
