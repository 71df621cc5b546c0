"""--checkpoint_layers and --activation_budget from the command line: said, refused, and without effect on the curve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2 import cli
from colossal_llama2.engine import ranks
from colossal_llama2.errors import InputError
from colossal_llama2.train.recomputation import check_recomputation, recompute_as_asked
from colossal_llama2.train.settings import TrainSettings


def settings_of(model_dir: Path, *flags: object) -> TrainSettings:
    always = ["--pretrained", model_dir, "--dataset", "corpus", "--save_dir", "out"]
    return cli.parse(TrainSettings, [str(flag) for flag in (*always, *flags)])


def load(model_dir: Path) -> Any:
    from colossal_llama2.model.pretrained import load_for_training

    return load_for_training(model_dir, "fp32", use_flash_attn=False)


def recomputed(model: Any) -> list[bool]:
    return [bool(layer.gradient_checkpointing) for layer in model.model.layers]


def test_all_some_or_none(model_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_of("llama")
    for flags, expected in (
        ((), [False] * 4),
        (("--use_grad_checkpoint",), [True] * 4),
        (("--checkpoint_layers", 3), [True, True, True, False]),
        (
            ("--checkpoint_layers", 2, "--plugin", "3d", "--pp", 2, "--accumulation_steps", 2),
            [True, False, True, False],
        ),
    ):
        model = load(folder)
        recompute_as_asked(settings_of(folder, *flags), model)
        assert recomputed(model) == expected, flags
    assert "recomputed: 3 of 4 layers" in capsys.readouterr().out


def test_a_budget_says_what_it_came_to(
    model_of: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "world_size", lambda: 1)
    folder = model_of("llama")
    counts = []
    for budget in ("1", "0.0018", "0.0012"):
        model = load(folder)
        flags = ("--activation_budget", budget, "--micro_batch_size", 8, "--mixed_precision", "bf16")
        recompute_as_asked(settings_of(folder, *flags), model, max_length=48)
        counts.append(sum(recomputed(model)))
        said = capsys.readouterr().out
        assert f"for {float(budget)} GiB of activations" in said
        assert said.startswith("recomputed: no layer" if counts[-1] == 0 else f"recomputed: {counts[-1]} of 4 layers")
    assert counts[0] == 0
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--use_grad_checkpoint", "--checkpoint_layers", 2), "both say"),
        (("--activation_budget", 2, "--checkpoint_layers", 2), "both say"),
        (("--checkpoint_layers", -1), "--checkpoint_layers is -1"),
        (("--activation_budget", 0), "--activation_budget is 0"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, flags: tuple[object, ...], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check_recomputation(settings_of(tmp_path, *flags).model)


def test_more_layers_than_there_are_and_stages_without_a_plan(model_of: Callable[..., Path]) -> None:
    folder = model_of("llama")
    with pytest.raises(InputError, match="--checkpoint_layers 5, and 4 layers"):
        recompute_as_asked(settings_of(folder, "--checkpoint_layers", 5), load(folder))
    with pytest.raises(InputError, match="does not follow"):
        recompute_as_asked(settings_of(folder, "--activation_budget", 1), load(folder))


@pytest.mark.long
@pytest.mark.parametrize(
    ("plugin", "flags"),
    [
        ("zero2", ["--mixed_precision", "bf16"]),
        ("zero2_cpu", ["--mixed_precision", "bf16", "--offload_fraction", 0.5]),
        ("ddp", ["--mixed_precision", "bf16"]),
        ("gemini", ["--mixed_precision", "bf16"]),
        ("gemini_auto", ["--mixed_precision", "bf16"]),
        ("3d", ["--mixed_precision", "fp32", "--zero", 0, "--tp", 2]),
        ("3d", ["--mixed_precision", "fp32", "--zero", 0, "--pp", 2, "--accumulation_steps", 2]),
    ],
)
def test_the_curve_of_two_ranks_is_exactly_the_same(
    train_on: Callable[..., Any], model_of: Callable[..., Path], tmp_path: Path, plugin: str, flags: list[object]
) -> None:
    curves = []
    for layers in (0, 3):
        own = [*flags, "--plugin", plugin, "--max_steps", 3, "--checkpoint_layers", layers]
        run = train_on(2, tmp_path / f"run{layers}", *own, model_dir=model_of("llama"))
        assert run.code == 0, run.output
        assert ("recomputed: 3 of 4 layers" in run.output) == bool(layers)
        curves.append([(line["loss"], line["grad_norm"]) for line in run.metrics])
    assert len(curves[0]) == 3
    assert curves[0] == curves[1]
