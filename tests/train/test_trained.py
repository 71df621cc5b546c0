"""What is trained, with every plugin: the curve of plain PyTorch, an exact resume; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.model.freezing import embedding_parameters
from colossal_llama2.tokenizer.expansion import new_tokens
from colossal_llama2.train.pretrain import main
from colossal_llama2.train.settings import TrainSettings

FREEZE, NEW = "--freeze_non_embeds_params", "--train_new_rows_only"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def references(
    expanded: Callable[..., tuple[Path, Path]], plain_curve: Callable[..., list[tuple[float, float]]]
) -> dict[str, list[tuple[float, float]]]:
    """Give the curves of plain PyTorch with embeddings trained alone, and with the new rows of them alone."""
    from transformers import AutoModelForCausalLM

    curves = {}
    base, corpus = expanded()
    for flag in (FREEZE, NEW):
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.requires_grad_(False)
        for parameter in embedding_parameters(model):
            parameter.requires_grad_(True)
            if flag == NEW:
                frozen = torch.ones(len(parameter), 1)
                frozen[list(new_tokens(base))] = 0
                parameter.register_hook(lambda gradient, frozen=frozen: gradient * (1 - frozen))
        decay = 0.1 if flag == FREEZE else 0.0
        groups = [
            {"params": [model.get_input_embeddings().weight], "weight_decay": 0.0},
            {"params": [model.get_output_embeddings().weight], "weight_decay": decay},
        ]
        curves[flag] = plain_curve(model, groups, corpus)
    return curves


@pytest.mark.parametrize(
    ("plugin", "precision", "flag"),
    [
        ("zero2", "fp32", NEW),
        ("gemini", "bf16", FREEZE),
        *[
            pytest.param(plugin, precision, flag, marks=pytest.mark.long)
            for plugin, precision in [
                ("zero2", "fp32"),
                ("zero2", "fp16"),
                ("zero2_cpu", "fp32"),
                ("ddp", "fp32"),
                ("ddp", "bf16"),
                ("gemini", "bf16"),
                ("gemini_auto", "fp16"),
            ]
            for flag in (FREEZE, NEW)
        ],
    ],
)
def test_the_curve_is_that_of_plain_pytorch(
    train_on: Callable[..., Any],
    expanded: Callable[..., tuple[Path, Path]],
    references: dict[str, list[tuple[float, float]]],
    plain_flags: list[object],
    tmp_path: Path,
    plugin: str,
    precision: str,
    flag: str,
) -> None:
    base, corpus = expanded()
    flags = [*plain_flags, "--plugin", plugin, "--mixed_precision", precision, "--accumulation_steps", 2, flag]
    run = train_on(2, tmp_path / "run", *flags, model_dir=base, corpus=corpus)
    assert run.code == 0, run.output
    exact = precision == "fp32"
    assert len(run.metrics) == len(references[flag]) == 5
    for line, (loss, norm) in zip(run.metrics, references[flag], strict=True):
        assert line["loss"] == pytest.approx(loss, abs=1e-5 if exact else 0.05)
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-4 if exact else 0.05)
    before, after = weights(base), weights(tmp_path / "run" / "modeling")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"model.embed_tokens.weight", "lm_head.weight"}
    assert references[NEW][0][1] < 0.9 * references[FREEZE][0][1], "the norms are alike, so equality shows little"


@pytest.mark.parametrize(
    ("plugin", "precision"),
    [
        pytest.param(plugin, precision, marks=pytest.mark.long)
        for plugin, precision in [
            ("zero2", "bf16"),
            ("zero2_cpu", "fp16"),
            ("gemini", "bf16"),
            ("gemini_auto", "fp16"),
            ("ddp", "bf16"),
        ]
    ],
)
@pytest.mark.parametrize("flag", [FREEZE, NEW])
def test_resuming_is_exact(
    train_on: Callable[..., Any],
    expanded: Callable[..., tuple[Path, Path]],
    tmp_path: Path,
    plugin: str,
    precision: str,
    flag: str,
) -> None:
    base, corpus = expanded("float32", True)
    flags = ["--max_steps", 6, "--lr", 1e-2, "--plugin", plugin, "--mixed_precision", precision, flag]
    whole = train_on(2, tmp_path / "whole", *flags, "--save_interval", 3, model_dir=base, corpus=corpus)
    assert whole.code == 0, whole.output
    checkpoint = ["--load_checkpoint", tmp_path / "whole" / "epoch-0_step-3"]
    resumed = train_on(2, tmp_path / "resumed", *flags, *checkpoint, model_dir=base, corpus=corpus)
    assert resumed.code == 0, resumed.output
    assert [line["step"] for line in resumed.metrics] == [4, 5, 6]
    assert resumed.curve() == whole.curve()[3:]
    one, other = weights(tmp_path / "whole" / "modeling"), weights(tmp_path / "resumed" / "modeling")
    assert one.keys() == other.keys() != set()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def run_here(expanded: Callable[..., tuple[Path, Path]], tmp_path: Path) -> Callable[..., int]:
    """Give a function that runs the command in this process, two steps on one rank."""
    base, corpus = expanded()
    fast = ["--mixed_precision", "fp32", "--max_steps", 2, "--max_length", 48, "--save_interval", 0]

    def run(*flags: object, pretrained: Path = base) -> int:
        own = ["--pretrained", pretrained, "--dataset", corpus, "--save_dir", tmp_path / "out", *fast, *flags]
        return main(cli.parse(TrainSettings, [str(argument) for argument in own]))

    return run


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--lora_rank", 4, "--plugin", "gemini", "--mixed_precision", "bf16"], "Gemini does not support LoRA"),
        (["--lora_rank", 4, "--plugin", "gemini_auto", "--mixed_precision", "bf16"], "pass --plugin zero2"),
        (["--lora_rank", 4, FREEZE], "would freeze the adapter"),
        (["--lora_rank", 4, NEW, "--lora_train_embeddings", "no"], "leave one out"),
        (["--lora_rank", -1], "numbers of 1 or more"),
        (["--lora_rank", 4, "--lora_alpha", 0], "numbers of 1 or more"),
        (["--lora_rank", 4, "--lora_dropout", 1], "--lora_dropout is 1"),
        (["--lora_rank", 4, "--lora_targets", "q_proj,wrong"], "choose among down_proj"),
        (["--lora_alpha", 8], "--lora_alpha without --lora_rank"),
        (["--lora_merge"], "--lora_merge without --lora_rank"),
        (["--lora_targets", "q_proj"], "--lora_targets without --lora_rank"),
        ([NEW, "--decay_all_params"], "would pull at the rows"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    run_here: Callable[..., int], tmp_path: Path, flags: list[object], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        run_here(*flags)
    assert list(tmp_path.iterdir()) == []


def test_new_rows_need_an_expansion(
    run_here: Callable[..., int], expanded: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    shutil.copytree(expanded()[0], tmp_path / "base")
    (tmp_path / "base" / "expansion.json").unlink()
    with pytest.raises(InputError, match=r"no expansion\.json.*init_tokenizer"):
        run_here(NEW, pretrained=tmp_path / "base")
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_handed_on_and_nothing_else_is_taken_for_one(
    run_here: Callable[..., int], expanded: Callable[..., tuple[Path, Path]], tmp_path: Path
) -> None:
    lora = ["--lora_rank", 4, "--lora_targets", "v_proj,q_proj"]
    assert run_here(*lora, "--save_interval", 2) == 0
    adapter, checkpoint = tmp_path / "out" / "adapter", tmp_path / "out" / "epoch-0_step-2"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(expanded()[0])
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (4, 8, ["q_proj", "v_proj"])
    assert (adapter / "tokenizer.model").is_file()
    with pytest.raises(InputError, match=r"holds an earlier run \(epoch"):
        run_here(*lora)
    next_stage = ["--save_dir", tmp_path / "next"]
    for load, flags, complaint in (
        (adapter, [], "is an adapter, and --lora_rank is not given"),
        (adapter, ["--lora_rank", 8], "pass --lora_rank 4 --lora_alpha 8 --lora_targets q_proj,v_proj"),
        (adapter, [*lora, "--lora_train_embeddings", "no"], "--lora_train_embeddings yes"),
        (checkpoint, [], "other weights in training"),
        (checkpoint, ["--lora_rank", 4], "other weights in training"),
    ):
        with pytest.raises(InputError, match=complaint):
            run_here("--load_checkpoint", load, *flags, *next_stage)
    assert not (tmp_path / "next").exists()
    assert run_here("--load_checkpoint", adapter, *lora, *next_stage) == 0
    assert (tmp_path / "next" / "adapter" / "adapter_model.safetensors").is_file()
    with pytest.raises(InputError, match="is a whole model"):
        run_here("--load_checkpoint", expanded("bfloat16")[0], *lora, "--save_dir", tmp_path / "third")
