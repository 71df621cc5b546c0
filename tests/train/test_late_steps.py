"""Reading a step's figures while the next one is computed: nothing else changes, and the device is never waited for."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from colossal_llama2 import cli
from colossal_llama2.engine.running_state import FILE_NAME
from colossal_llama2.engine.session import Objective
from colossal_llama2.train import supervised
from colossal_llama2.train.pretrain import main
from colossal_llama2.train.settings import TrainSettings
from colossal_llama2.train.stopping import NonFiniteError

STEPS = 6
FLAGS = ["--max_steps", STEPS, "--max_length", 48, "--micro_batch_size", 2, "--lr", "1e-2", "--warmup_steps", 0]
SAME = ("step", "epoch", "tokens", "learned_tokens", "loss", "grad_norm", "lr", "skipped")


@pytest.fixture
def train_late(
    tiny_model_dir: Path, corpus_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Give a function that trains in this process, its `Run` changed before it begins; it returns the run's folder."""
    build = supervised.build

    def train(name: str, change: Callable[[Any], Any], *flags: object) -> Path:
        def changed(*arguments: Any) -> Any:
            run, position = build(*arguments)
            return change(run), position

        monkeypatch.setattr(supervised, "build", changed)
        own = ["--pretrained", tiny_model_dir, "--dataset", corpus_dir, "--save_dir", tmp_path / name, *FLAGS, *flags]
        assert main(cli.parse(TrainSettings, [str(argument) for argument in own])) == 0
        return tmp_path / name

    return train


def late(run: Any) -> Any:
    return replace(run, reads_late=True)


def lines(save_dir: Path) -> list[tuple[Any, ...]]:
    metrics = [json.loads(line) for line in (save_dir / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == STEPS
    return [tuple(line[name] for name in SAME) for line in metrics]


@pytest.mark.parametrize(
    ("plugin", "precision"),
    [
        ("zero2", "bf16"),
        pytest.param("zero2", "fp16", marks=pytest.mark.long),
        pytest.param("ddp", "bf16", marks=pytest.mark.long),
        pytest.param("3d", "bf16", marks=pytest.mark.long),
    ],
)
def test_the_metrics_are_those_of_reading_at_once(train_late: Callable[..., Path], plugin: str, precision: str) -> None:
    flags = ["--plugin", plugin, "--mixed_precision", precision, "--save_interval", 4]
    at_once = train_late("at-once", lambda run: run, *flags)
    assert lines(train_late("late", late, *flags)) == lines(at_once)
    (checkpoint,) = (path.name for path in at_once.glob("epoch-*"))
    states = [json.loads((at_once.parent / name / checkpoint / FILE_NAME).read_text()) for name in ("at-once", "late")]
    assert states[0] == states[1]


class Poisoned:
    """An objective whose loss is no number at one step; it keeps the weights as they were before that step."""

    def __init__(self, run: Any, at_step: int, gradients_only: bool) -> None:
        self._run, self._at, self._gradients_only = run, at_step, gradients_only
        self.steps = 0
        self.weights: dict[str, torch.Tensor] = {}

    def loss_sum(self, output: Any, batch: Any, cross_entropies: Any) -> torch.Tensor:
        """Return the loss, or what is none."""
        self.steps += 1
        loss: torch.Tensor = self._run.objective.loss_sum(output, batch, cross_entropies)
        if self.steps != self._at:
            return loss
        self.weights = self.state()
        if self._gradients_only:  # the root's slope at 0 is infinite, and 0 times it no number
            return loss + (loss * 0).sqrt()
        return loss * math.nan

    def state(self) -> dict[str, torch.Tensor]:
        """Copy the weights as they are now; Gemini's lie in chunks."""
        session = self._run.session
        if session.settings.plugin == "gemini":
            chunks = (chunk.paired_chunk for chunk in session.optimizer.chunk16_set)
            return {str(number): chunk.payload.clone() for number, chunk in enumerate(chunks)}
        return {name: tensor.clone() for name, tensor in session.model.unwrap().state_dict().items()}


@pytest.mark.parametrize(
    ("plugin", "precision", "gradients_only"),
    [
        ("zero2", "bf16", False),
        ("zero2", "fp32", True),
        pytest.param("ddp", "bf16", True, marks=pytest.mark.long),
        ("gemini", "bf16", False),
        pytest.param("3d", "bf16", False, marks=pytest.mark.long),
    ],
)
def test_what_is_found_late_has_not_spoiled_the_weights(
    train_late: Callable[..., Path], plugin: str, precision: str, gradients_only: bool
) -> None:
    """The loss of step 3 is no number; the host gets to know when step 4 has been computed and has updated nothing."""
    poisoned: list[Poisoned] = []

    def poison(run: Any) -> Any:
        poisoned.append(Poisoned(run, 3, gradients_only))
        return replace(late(run), objective=Objective(run.objective.inputs, poisoned[0].loss_sum))

    what = "gradients of step 3 are not finite" if gradients_only else "loss of step 3 is nan"
    with pytest.raises(NonFiniteError, match=f"{what}.*the weights are those of step 2"):
        train_late("out", poison, "--plugin", plugin, "--mixed_precision", precision, "--save_interval", 0)
    assert poisoned[0].steps == 4
    after = poisoned[0].state()
    assert after
    assert all(torch.equal(after[name], tensor) for name, tensor in poisoned[0].weights.items())


class Reads(TorchDispatchMode):
    """Counts what waits for the device: a number read on the host, a shape that depends on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the operation if it is one of them."""
        masks = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if masks or func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.note()
        return func(*args, **(kwargs or {}))

    def note(self) -> None:
        """Take down who asked: the last function on the stack that is not torch's or this test's."""
        frame: Any = sys._getframe(1)
        while "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
            frame = frame.f_back
        self.places[frame.f_code.co_name] += 1


@pytest.mark.parametrize("plugin", ["zero2", "ddp"])
def test_a_step_reads_the_device_once(
    train_late: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, plugin: str
) -> None:
    """What is read of the batch itself lies on the host whatever the device: the documents' bounds, the labels."""
    reads, to_list, steps = Reads(), torch.Tensor.tolist, []

    def noted(tensor: torch.Tensor) -> Any:
        reads.note()
        return to_list(tensor)

    class Counted:
        def after_step(self, step: int) -> None:
            """Count from the second step on to the last but one, which is read at once."""
            steps.append(step)
            if step == 1:
                monkeypatch.setattr(torch.Tensor, "tolist", noted)
                reads.__enter__()
            elif step == STEPS - 1:
                reads.__exit__(None, None, None)
                monkeypatch.setattr(torch.Tensor, "tolist", to_list)

        def close(self) -> None:
            """Do nothing more."""

    flags = ["--plugin", plugin, "--mixed_precision", "bf16", "--save_interval", 0]
    train_late("out", lambda run: replace(late(run), profiler=Counted()), *flags)
    assert steps == list(range(1, STEPS + 1))
    on_host = {"of", "learned_places"}  # `Documents.of`
    found = {name: count for name, count in reads.places.items() if name not in on_host}
    assert found == {"read": STEPS - 2}
