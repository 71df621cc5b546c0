"""The direct methods: the same losses as plain training on one answer at a time, whatever is packed or divided."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.parts import Row

PRECISE = ["--mixed_precision", "fp32"]
LEARNS = ["--weight_decay", 0.1]
StepLoss = Callable[[Any, list[Any]], torch.Tensor]


def pieces(row: Any) -> list[Row]:
    """Take a row apart into its answers."""
    bounds = itertools.pairwise([0, *row.seq_lens.cumsum().tolist()])
    return [Row(row.input_ids[b:e], row.labels[b:e], (row.seq_lens[:1] * 0 + e - b)) for b, e in bounds]


def pairs(row: Any, said: list[Any]) -> list[tuple[Any, Any]]:
    """List (better, worse) of what was said of a row's answers."""
    ordered = itertools.permutations(zip(row.ranks.tolist(), said, strict=True), 2)
    return [(better, worse) for (rank, better), (other, worse) in ordered if rank < other]


class Plain:
    """Losses of steps, written out, with a frozen copy of the model that training starts from."""

    def __init__(self, parity: Any, model: Any, dataset: Path, beta: float) -> None:
        self.parity, self.beta = parity, beta
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        corpus = PreparedCorpus.open([dataset], types=("preference",))
        self.rows = [corpus.row(number) for number in range(corpus.num_rows)]

    def said(self, model: Any, piece: Row) -> tuple[torch.Tensor, int]:
        """Return log p of an answer, and its number of tokens."""
        losses = [loss for _, loss in self.parity.row_losses(model, piece)]
        return -torch.stack(losses).sum(), len(losses)

    def ratio(self, model: Any, piece: Row) -> torch.Tensor:
        """Return log p of an answer less the reference's."""
        return self.said(model, piece)[0] - self.said(self.reference, piece)[0]

    def dpo(self, model: Any, rows: list[Any]) -> torch.Tensor:
        losses = [
            -torch.log(torch.sigmoid(self.beta * (better - worse)))
            for row in rows
            for better, worse in pairs(row, [self.ratio(model, piece) for piece in pieces(row)])
        ]
        return torch.stack(losses).mean()

    def ipo(self, model: Any, rows: list[Any]) -> torch.Tensor:
        losses = [
            (better - worse - 1 / (2 * self.beta)) ** 2
            for row in rows
            for better, worse in pairs(row, [self.ratio(model, piece) for piece in pieces(row)])
        ]
        return torch.stack(losses).mean()

    def simpo(self, model: Any, rows: list[Any]) -> torch.Tensor:
        losses = [
            -F.logsigmoid(self.beta * (bs / bn - ws / wn) - 1.0)
            for row in rows
            for (bs, bn), (ws, wn) in pairs(row, [self.said(model, piece) for piece in pieces(row)])
        ]
        return torch.stack(losses).mean()

    def orpo(self, model: Any, rows: list[Any]) -> torch.Tensor:
        losses = []
        for row in rows:
            for (bs, bn), (ws, wn) in pairs(row, [self.said(model, piece) for piece in pieces(row)]):
                better, worse = torch.exp(bs / bn), torch.exp(ws / wn)
                odds = torch.log(better / (1 - better)) - torch.log(worse / (1 - worse))
                losses.append(-bs / bn - 0.1 * F.logsigmoid(odds))
        return torch.stack(losses).mean()

    def kto(self, model: Any, rows: list[Any]) -> torch.Tensor:
        with torch.no_grad():
            point = torch.stack([self.ratio(model, self.mismatched(row)) for row in rows]).mean().clamp(min=0)
        losses = []
        for row in rows:
            for rank, piece in zip(row.ranks.tolist(), pieces(row), strict=True):
                above = self.beta * (self.ratio(model, piece) - point)
                losses.append(1 - torch.sigmoid(above) if rank == 0 else 0.5 * (1 - torch.sigmoid(-above)))
        return torch.stack(losses).mean()

    def mismatched(self, row: Any) -> Row:
        """Put a row's prompt before the first answer of the next row that has another prompt and fits."""
        number = next(n for n, other in enumerate(self.rows) if other.input_ids.tobytes() == row.input_ids.tobytes())
        prompt = divide(row)[0]
        for other in self.rows[number + 1 :] + self.rows[:number]:
            theirs, ids, labels = divide(other)
            if theirs != prompt and len(prompt) + len(ids) <= 64:
                whole = torch.tensor(prompt + ids).int().numpy()
                return Row(whole, torch.tensor([-100] * len(prompt) + labels).int().numpy(), whole[:1] * 0 + len(whole))
        raise AssertionError("every prompt of the set is the same")


def divide(row: Any) -> tuple[list[int], list[int], list[int]]:
    first = pieces(row)[0]
    begin = next(place for place, label in enumerate(first.labels.tolist()) if label != -100)
    return first.input_ids[:begin].tolist(), first.input_ids[begin:].tolist(), first.labels[begin:].tolist()


FLAGS: dict[str, tuple[str, float, list[object]]] = {
    "dpo": ("dpo", 0.1, []),
    "ipo": ("dpo", 0.2, ["--dpo_loss", "ipo", "--beta", 0.2]),
    "simpo": ("simpo", 2.0, []),
    "orpo": ("orpo", 0.0, []),
    "kto": ("kto", 0.1, ["--undesirable_weight", 0.5]),
}


@pytest.fixture(scope="session")
def plain_losses(parity_reference: Any, tiny_model_dir: Path, preference_dir: Path) -> Callable[[str], list[float]]:
    """Give a function that returns five steps' losses of a method in plain PyTorch, each computed once."""
    from transformers import AutoModelForCausalLM

    known: dict[str, list[float]] = {}

    def losses(method: str) -> list[float]:
        if method not in known:
            model: Any = AutoModelForCausalLM.from_pretrained(
                tiny_model_dir, dtype=torch.float32, attn_implementation="eager"
            )
            decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n]
            others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
            groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
            plain = Plain(parity_reference, model, preference_dir, FLAGS[method][1])
            step: StepLoss = getattr(plain, method)
            curve = parity_reference.train_plainly(model, groups, preference_dir, parity_reference.PlainSteps(), step)
            known[method] = [loss for loss, _ in curve]
        return known[method]

    return losses


ZERO2 = [*PRECISE, "--micro_batch_size", 2]
GEMINI = ["--mixed_precision", "bf16", "--plugin", "gemini", "--accumulation_steps", 2]
TP2 = [*PRECISE, "--plugin", "3d", "--tp", 2, "--zero", 0, "--micro_batch_size", 2, "--accumulation_steps", 2]


@pytest.mark.parametrize(
    ("method", "flags", "tolerance"),
    [
        ("dpo", ZERO2, 2e-5),
        ("dpo", GEMINI, 3e-2),
        ("dpo", TP2, 2e-5),
        ("simpo", ZERO2, 2e-5),
        ("orpo", ZERO2, 2e-5),
        ("kto", ZERO2, 2e-5),
        pytest.param("ipo", ZERO2, 2e-3, marks=pytest.mark.long),
        pytest.param("simpo", GEMINI, 6e-2, marks=pytest.mark.long),
        pytest.param("orpo", [*GEMINI, "--plugin", "gemini_auto"], 3e-2, marks=pytest.mark.long),
        pytest.param("simpo", TP2, 2e-5, marks=pytest.mark.long),
        pytest.param("orpo", GEMINI, 3e-2, marks=pytest.mark.long),
        pytest.param("orpo", TP2, 2e-5, marks=pytest.mark.long),
        pytest.param("kto", GEMINI, 3e-2, marks=pytest.mark.long),
        pytest.param("kto", TP2, 2e-5, marks=pytest.mark.long),
        pytest.param("dpo", [*ZERO2, "--plugin", "ddp"], 2e-5, marks=pytest.mark.long),
        pytest.param("dpo", [*ZERO2, "--plugin", "zero2_cpu"], 2e-5, marks=pytest.mark.long),
        pytest.param("kto", [*ZERO2, "--plugin", "ddp"], 2e-5, marks=pytest.mark.long),
    ],
)
def test_the_losses_are_those_of_plain_training(
    align_on: Callable[..., Any],
    preference_dir: Path,
    tmp_path: Path,
    plain_align_flags: list[object],
    plain_losses: Callable[[str], list[float]],
    method: str,
    flags: list[object],
    tolerance: float,
) -> None:
    stage, _, own = FLAGS[method]
    evaluated = ["--eval_interval", 3, "--eval_dataset", preference_dir / "holdout"]
    given = [*plain_align_flags, *LEARNS, *flags, *own, *evaluated]
    run = align_on(2, stage, preference_dir, tmp_path / "out", *given)
    assert run.code == 0, run.output
    assert [line["loss"] for line in run.metrics] == pytest.approx(plain_losses(method), abs=tolerance, rel=tolerance)
    last = run.metrics[-1]
    assert 0 <= last["accuracy"] <= 1
    assert {"eval_loss", "eval_accuracy", "eval_margin"} <= last.keys()


def test_kto_learns_from_single_answers(align_on: Callable[..., Any], labelled_dir: Path, tmp_path: Path) -> None:
    flags = [*PRECISE, "--max_steps", 3, "--lr", 1e-3, "--micro_batch_size", 4]
    run = align_on(1, "kto", labelled_dir, tmp_path, *flags)
    assert run.code == 0, run.output
    first = run.metrics[0]
    # the policy is the reference before the first step, at the reference point
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)
    assert (first["margin"], first["reference_point"]) == pytest.approx((0.0, 0.0), abs=1e-5)
    assert run.metrics[-1]["margin"] != pytest.approx(0.0, abs=1e-5)
