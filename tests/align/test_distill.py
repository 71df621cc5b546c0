"""Distillation: the same losses as plain training beside a teacher of other widths, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama2 import cli
from colossal_llama2.align.distill import Distill, DistillSettings
from colossal_llama2.errors import InputError
from colossal_llama2.train.opening import open_run

PRECISE = ["--mixed_precision", "fp32"]
TEMPERATURE, CE_WEIGHT = 2.0, 0.25
OWN = ["--distill_temperature", TEMPERATURE, "--distill_ce_weight", CE_WEIGHT, "--weight_decay", 0.1]


def save_teacher(folder: Path, tokenizer_dir: Path, vocab_size: int) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in tokenizer_dir.iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Path:
    """Give a wider and deeper model than the tiny one, with rows for no token besides."""
    return save_teacher(tmp_path_factory.mktemp("teacher") / "model", llama_tokenizer_dir, 656)


def documents(row: Any) -> Iterator[tuple[torch.Tensor, list[int]]]:
    begin = 0
    for length in row.seq_lens.tolist():
        ids = torch.tensor(row.input_ids[begin : begin + length].astype(int))[None]
        labels = row.labels[begin : begin + length].tolist()
        yield ids, [t for t in range(1, length) if labels[t] != -100]
        begin += length


@pytest.fixture(scope="session")
def plain_losses(parity_reference: Any, tiny_model_dir: Path, sft_dir: Path, teacher_dir: Path) -> list[float]:
    """Give five steps' losses in plain PyTorch, one document at a time."""
    from transformers import AutoModelForCausalLM

    def load(folder: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")

    model, teacher = load(tiny_model_dir), load(teacher_dir).eval().requires_grad_(False)

    def step_loss(model: Any, rows: list[Any]) -> torch.Tensor:
        losses = []
        for ids, learned in (document for row in rows for document in documents(row)):
            before = [t - 1 for t in learned]
            own = model(input_ids=ids, use_cache=False).logits[0, before]
            theirs = teacher(input_ids=ids, use_cache=False).logits[0, before, : own.shape[-1]]
            p, q = torch.softmax(own / TEMPERATURE, -1), torch.softmax(theirs / TEMPERATURE, -1)
            kl = (q * (q.log() - p.log())).sum(-1)
            entropy = -own.log_softmax(-1)[range(len(learned)), ids[0, learned]]
            losses.append((1 - CE_WEIGHT) * TEMPERATURE**2 * kl + CE_WEIGHT * entropy)
        return torch.cat(losses).mean()

    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    curve = parity_reference.train_plainly(model, groups, sft_dir, parity_reference.PlainSteps(), step_loss)
    return [loss for loss, _ in curve]


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        ([*PRECISE, "--micro_batch_size", 2], 2e-5),
        pytest.param(
            ["--mixed_precision", "bf16", "--plugin", "gemini", "--accumulation_steps", 2],
            5e-2,
            marks=pytest.mark.long,
        ),
        pytest.param(
            ["--mixed_precision", "bf16", "--plugin", "gemini_auto", "--micro_batch_size", 2],
            5e-2,
            marks=pytest.mark.long,
        ),
        pytest.param([*PRECISE, "--plugin", "ddp", "--micro_batch_size", 2], 2e-5, marks=pytest.mark.long),
        pytest.param(
            [*PRECISE, "--plugin", "3d", "--zero", 0, "--accumulation_steps", 2], 2e-5, marks=pytest.mark.long
        ),
    ],
)
def test_the_losses_are_those_of_plain_training(
    align_on: Callable[..., Any],
    sft_dir: Path,
    teacher_dir: Path,
    tmp_path: Path,
    plain_align_flags: list[object],
    plain_losses: list[float],
    flags: list[object],
    tolerance: float,
) -> None:
    evaluated = ["--eval_dataset", sft_dir / "holdout"]
    given = [*plain_align_flags, *OWN, *flags, *evaluated, "--teacher", teacher_dir]
    run = align_on(2, "distill", sft_dir, tmp_path / "out", *given)
    assert run.code == 0, run.output
    assert [line["loss"] for line in run.metrics] == pytest.approx(plain_losses, abs=tolerance)
    last = run.metrics[-1]
    mixed = (1 - CE_WEIGHT) * TEMPERATURE**2 * last["kl"] + CE_WEIGHT * last["cross_entropy"]
    assert last["loss"] == pytest.approx(mixed, rel=1e-4)
    assert {"eval_loss", "eval_kl", "eval_cross_entropy"} <= last.keys()
    assert "teacher: " in run.output
    assert "whole on every rank" in run.output


@pytest.mark.long
def test_resuming_is_exact_and_wants_the_same_teacher(
    align_on: Callable[..., Any], sft_dir: Path, teacher_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    flags = ["--mixed_precision", "bf16", "--max_steps", 6, "--lr", 1e-2, "--num_epochs", 4]
    whole = align_on(2, "distill", sft_dir, tmp_path / "whole", *flags, "--save_interval", 3, "--teacher", teacher_dir)
    assert whole.code == 0, whole.output
    (checkpoint,) = (tmp_path / "whole").glob("epoch-*_step-3")
    again = [*flags, "--load_checkpoint", checkpoint, "--teacher"]
    resumed = align_on(2, "distill", sft_dir, tmp_path / "resumed", *again, teacher_dir)
    assert resumed.code == 0, resumed.output
    assert resumed.curve() == whole.curve()[3:] != []
    other = align_on(2, "distill", sft_dir, tmp_path / "other", *again, tiny_model_dir)
    assert other.code == 2
    assert "was made with another teacher" in other.output


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "without --teacher"),
        (["--teacher", "TEACHER", "--distill_temperature", 0], "--distill_temperature is 0"),
        (["--teacher", "TEACHER", "--distill_ce_weight", 1], "--distill_ce_weight is 1"),
        (["--teacher", "TEACHER", "--plugin", "3d", "--tp", 2], "--tp 2"),
        (["--teacher", "OTHER"], "tokenizer is another one"),
        (["--teacher", "NOWHERE"], "no such folder"),
    ],
)
def test_what_cannot_be_distilled_is_refused(
    tiny_model_dir: Path,
    sft_dir: Path,
    teacher_dir: Path,
    byte_level_tokenizer_dir: Path,
    tmp_path: Path,
    flags: list[object],
    sentence: str,
) -> None:
    if "OTHER" in flags:
        save_teacher(tmp_path / "other", byte_level_tokenizer_dir, 512)
    names = {"TEACHER": teacher_dir, "OTHER": tmp_path / "other", "NOWHERE": tmp_path / "nowhere"}
    given = [str(names.get(str(part), part)) for part in flags]
    base = ["--pretrained", tiny_model_dir, "--dataset", sft_dir, "--save_dir", tmp_path / "out", "--max_length", 64]
    with pytest.raises(InputError) as error:
        open_run(Distill(cli.parse(DistillSettings, [*map(str, base), *given])))
    assert sentence in str(error.value)
    assert not (tmp_path / "out").exists()
