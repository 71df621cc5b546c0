"""Reward models: the same losses as plain training on one answer at a time, checkpoints, and what is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama2 import cli
from colossal_llama2.align.reward import Reward, RewardSettings, length_products, main
from colossal_llama2.errors import InputError
from colossal_llama2.model.scalar_head import load_scorer, start_head
from colossal_llama2.train.settings import DataOptions, ModelOptions, OutputOptions

PRECISE = ["--mixed_precision", "fp32"]


def score(model: Any, ids: Any) -> torch.Tensor:
    """Score one answer alone, through transformers' own attention: the last token's."""
    return model(input_ids=torch.tensor(ids.astype(int))[None], use_cache=False).logits[0, 0]


def step_loss(model: Any, rows: list[Any]) -> torch.Tensor:
    """Mean over prompts of the mean over its pairs of -log sigmoid(margin), written out."""
    of_prompts = []
    for row in rows:
        ends = [0, *row.seq_lens.cumsum().tolist()]
        scored = [score(model, row.input_ids[begin:end]) for begin, end in itertools.pairwise(ends)]
        ordered = list(itertools.permutations(zip(row.ranks.tolist(), scored, strict=True), 2))
        losses = [-torch.log(torch.sigmoid(b - w)) for (rank, b), (other, w) in ordered if rank < other]
        if losses:
            of_prompts.append(torch.stack(losses).mean())
    return torch.stack(of_prompts).mean()


@pytest.fixture(scope="session")
def plain_curve(parity_reference: Any, tiny_model_dir: Path, preference_dir: Path) -> list[tuple[float, float]]:
    """Give loss and gradient norm of five steps of four prompts in plain PyTorch."""
    from transformers import LlamaForSequenceClassification

    model: Any = LlamaForSequenceClassification.from_pretrained(
        tiny_model_dir, num_labels=1, dtype=torch.float32, attn_implementation="eager"
    )
    start_head(model, parity_reference.SEED)
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    steps = parity_reference.PlainSteps()
    found: list[tuple[float, float]] = parity_reference.train_plainly(model, groups, preference_dir, steps, step_loss)
    return found


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        ([*PRECISE, "--micro_batch_size", 2], 2e-5),
        (["--mixed_precision", "bf16", "--plugin", "gemini", "--accumulation_steps", 2], 2e-2),
        ([*PRECISE, "--plugin", "3d", "--tp", 2, "--zero", 0, "--micro_batch_size", 4], 2e-5),
    ],
    ids=["zero2", "gemini", "tp2"],
)
def test_the_losses_are_those_of_plain_training(
    align_on: Callable[..., Any],
    preference_dir: Path,
    tmp_path: Path,
    plain_align_flags: list[object],
    plain_curve: list[tuple[float, float]],
    flags: list[object],
    tolerance: float,
) -> None:
    evaluated = ["--eval_interval", 3, "--eval_dataset", preference_dir / "holdout"]
    run = align_on(2, "reward", preference_dir, tmp_path / "out", *plain_align_flags, *flags, *evaluated)
    assert run.code == 0, run.output
    assert [line["loss"] for line in run.metrics] == pytest.approx([loss for loss, _ in plain_curve], abs=tolerance)
    if "fp32" in flags:
        norms = [line["grad_norm"] for line in run.metrics]
        assert norms == pytest.approx([norm for _, norm in plain_curve], rel=1e-3)
    saved = tmp_path / "out" / "modeling"
    config = json.loads((saved / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert load_scorer(saved, "fp32").get_submodule("score").weight.shape == (1, 32)


def curve(run: Any) -> list[tuple[float, ...]]:
    names = ("step", "loss", "grad_norm", "accuracy", "margin", "chosen", "rejected", "length_correlation")
    return [tuple(line[name] for name in names) for line in run.metrics]


@pytest.mark.parametrize(
    "flags",
    [
        ["--mixed_precision", "bf16"],
        pytest.param(["--mixed_precision", "bf16", "--plugin", "gemini"], marks=pytest.mark.long),
        pytest.param(["--mixed_precision", "fp16", "--plugin", "gemini_auto"], marks=pytest.mark.long),
        pytest.param(["--mixed_precision", "fp16", "--plugin", "ddp"], marks=pytest.mark.long),
        pytest.param(["--mixed_precision", "bf16", "--plugin", "3d", "--tp", 2], marks=pytest.mark.long),
        pytest.param(["--mixed_precision", "bf16", "--lora_rank", 2], marks=pytest.mark.long),
    ],
    ids=lambda flags: flags[3] if len(flags) > 3 else "zero2",
)
def test_resuming_is_exact(
    align_on: Callable[..., Any], preference_dir: Path, tmp_path: Path, flags: list[object]
) -> None:
    common = [*flags, "--max_steps", 6, "--lr", 1e-2, "--micro_batch_size", 4, "--num_epochs", 2]
    watched = ["--eval_interval", 1, "--eval_dataset", preference_dir / "holdout"]
    whole = align_on(2, "reward", preference_dir, tmp_path / "whole", *common, *watched, "--save_interval", 3)
    assert whole.code == 0, whole.output
    checkpoint = tmp_path / "whole" / "epoch-0_step-3"
    resumed = align_on(2, "reward", preference_dir, tmp_path / "resumed", *common, "--load_checkpoint", checkpoint)
    assert resumed.code == 0, resumed.output
    assert curve(resumed) == curve(whole)[3:] != []
    assert all("eval_accuracy" in line for line in whole.metrics)


def test_an_adapter_learns_with_its_head_and_is_merged(
    align_on: Callable[..., Any], preference_dir: Path, tmp_path: Path
) -> None:
    flags = [*PRECISE, "--max_steps", 8, "--lr", 1e-2, "--lora_rank", 4, "--lora_merge", "--micro_batch_size", 4]
    watched = ["--eval_dataset", preference_dir / "holdout"]
    run = align_on(2, "reward", preference_dir, tmp_path / "out", *flags, *watched)
    assert run.code == 0, run.output
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    merged = tmp_path / "out" / "modeling"
    unmoved = ["--max_steps", 1, "--lr", 1e-30, *PRECISE, *watched]
    again = align_on(1, "reward", preference_dir, tmp_path / "again", *unmoved, model_dir=merged)
    assert again.code == 0, again.output
    assert again.metrics[-1]["eval_loss"] == pytest.approx(run.metrics[-1]["eval_loss"], abs=1e-5)
    assert again.metrics[-1]["eval_chosen"] == pytest.approx(run.metrics[-1]["eval_chosen"], abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--dataset", "SFT"], "is a set of --type sft, and this stage does not learn from that"),
        (["--freeze_non_embeds_params"], "would leave the score to a head that was drawn"),
        (["--plugin", "3d", "--pp", 2, "--accumulation_steps", 2], "--pp 2: a reward model is not divided that way"),
        (["--plugin", "3d", "--sp", 2], "--sp 2: a reward model is not divided that way"),
        (["--new_rows_interval", 5], "--new_rows_interval reports on losses of tokens"),
        (["--reward_loss", "hinge"], "invalid choice"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    sft_dir: Path, preference_dir: Path, tiny_model_dir: Path, tmp_path: Path, flags: list[object], complaint: str
) -> None:
    own = [str(sft_dir if flag == "SFT" else flag) for flag in flags]
    dataset = [] if "--dataset" in own else ["--dataset", str(preference_dir)]
    base = ["--pretrained", str(tiny_model_dir), "--save_dir", str(tmp_path / "out"), "--max_length", "64"]
    with pytest.raises(InputError, match=complaint):
        main(cli.parse(RewardSettings, [*base, *dataset, *own]))
    assert list(tmp_path.iterdir()) == []


def test_length_correlation_sees_lengths_among_the_answers_of_a_prompt_alone() -> None:
    prompts = torch.tensor([0, 0, 1, 1, 1])
    lengths = torch.tensor([3, 5, 20, 40, 30])
    stage = Reward(RewardSettings(ModelOptions(Path()), DataOptions((Path(),)), OutputOptions(Path())))

    def correlation(scored: list[float]) -> float | None:
        sums = {name: value.item() for name, value in length_products(torch.tensor(scored), lengths, prompts).items()}
        zeros = dict.fromkeys(stage.figure_names, 0.0)
        return stage.figures({**zeros, **sums}, 1)["length_correlation"]

    assert correlation([3.0, 5.0, -80.0, -60.0, -70.0]) == pytest.approx(1.0)
    assert correlation([5.0, 3.0, -60.0, -80.0, -70.0]) == pytest.approx(-1.0)
    assert correlation([7.0, 7.0, -1.0, -1.0, -1.0]) is None
