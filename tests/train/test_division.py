"""A model divided over ranks, by tensors, layers or sequences, trains like one in a single process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

STEPS = 5
# Eight rows a step; a large epsilon, because with 1e-8 Adam blows rounding noise in tiny gradients up to full steps.
COMMON = ["--max_steps", STEPS, "--lr", 1e-2, "--warmup_steps", 2, "--adam_eps", 1e-4, "--seed", 3]
FP32 = [*COMMON, "--mixed_precision", "fp32"]
SPLIT_GATHER = ["--tp", 2, "--sp", 2, "--sp_mode", "split_gather"]
CASES: list[tuple[int, str, bool, list[object], bool]] = [
    (2, "qwen3", True, ["--tp", 2], False),
    (2, "llama", True, ["--pp", 2, "--pp_chunks", 2, "--use_grad_checkpoint"], False),
    (2, "llama", False, ["--sp", 2], False),
    (2, "qwen3", False, SPLIT_GATHER, False),
    (2, "mistral", False, ["--tp", 2], True),
    (2, "mistral", True, ["--pp", 2], True),
    (2, "qwen2", False, ["--tp", 2, "--use_grad_checkpoint"], True),
    (2, "qwen2", True, ["--sp", 2, "--use_grad_checkpoint"], True),
    (4, "llama", True, ["--tp", 2, "--pp", 2], True),
    (4, "llama", False, ["--pp", 2, "--sp", 2], True),
    (4, "qwen3", True, [*SPLIT_GATHER, "--pp", 2], True),
    (4, "llama", False, ["--pp", 4], True),
]


@pytest.fixture(scope="module")
def whole(
    train_on: Callable[..., Any], model_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, bool], Any]:
    """Give a function that trains a model undivided, in one process, once."""
    known: dict[tuple[str, bool], Any] = {}

    def run(kind: str, tied: bool) -> Any:
        if (kind, tied) not in known:
            folder = tmp_path_factory.mktemp("whole")
            flags = [*FP32, "--plugin", "ddp", "--micro_batch_size", 8]
            known[kind, tied] = train_on(1, folder, *flags, model_dir=model_of(kind, tied))
        return known[kind, tied]

    return run


@pytest.mark.parametrize(
    ("ranks", "kind", "tied", "degrees"),
    [
        pytest.param(ranks, kind, tied, degrees, marks=[pytest.mark.long] if long else [])
        for ranks, kind, tied, degrees, long in CASES
    ],
)
def test_a_divided_model_trains_like_a_whole_one(
    train_on: Callable[..., Any],
    model_of: Callable[..., Path],
    whole: Callable[[str, bool], Any],
    tmp_path: Path,
    ranks: int,
    kind: str,
    tied: bool,
    degrees: list[object],
) -> None:
    reference = whole(kind, tied)
    assert reference.code == 0, reference.output
    flags = ["--plugin", "3d", "--zero", 0, "--micro_batch_size", 2, "--accumulation_steps", 4, *degrees]
    divided = train_on(ranks, tmp_path, *FP32, *flags, model_dir=model_of(kind, tied))
    assert divided.code == 0, divided.output
    assert len(divided.metrics) == STEPS
    for ours, theirs in zip(divided.metrics, reference.metrics, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours["tokens"] == theirs["tokens"], "ranks that see the same rows must be counted once"
    assert reference.metrics[-1]["loss"] < reference.metrics[0]["loss"] - 0.1, "nothing was learned"
    assert_same_model(divided.save_dir / "modeling", reference.save_dir / "modeling")


def assert_same_model(divided: Path, whole: Path) -> None:
    """The vocabulary is padded while it is divided, and saved as it was; every stage's layers arrive."""
    from transformers import AutoModelForCausalLM

    saved = {name: tensor for path in divided.glob("*.safetensors") for name, tensor in load_file(path).items()}
    ours = AutoModelForCausalLM.from_pretrained(divided).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(whole).state_dict()
    assert ours.keys() == theirs.keys()
    assert set(theirs) - set(saved) <= {"lm_head.weight"}
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("ranks", "precision", "degrees"),
    [
        (2, "fp16", ["--pp", 2]),
        pytest.param(2, "bf16", ["--tp", 2], marks=pytest.mark.long),
        pytest.param(2, "bf16", ["--zero", 2], marks=pytest.mark.long),
        pytest.param(4, "bf16", ["--tp", 2, "--zero", 1], marks=pytest.mark.long),
        pytest.param(4, "fp16", ["--pp", 2, "--zero", 1], marks=pytest.mark.long),
        pytest.param(4, "bf16", [*SPLIT_GATHER, "--zero", 1], marks=pytest.mark.long),
        pytest.param(2, "fp16", ["--sp", 2, "--zero", 1], marks=pytest.mark.long),
    ],
)
def test_half_precision_stays_close(
    train_on: Callable[..., Any],
    model_of: Callable[..., Path],
    whole: Callable[[str, bool], Any],
    tmp_path: Path,
    ranks: int,
    precision: str,
    degrees: list[object],
) -> None:
    divisor = 2 if "--pp" in degrees or "--tp" in degrees or "--sp" in degrees else 1
    division = ["--micro_batch_size", 2, "--accumulation_steps", 4 * divisor // ranks]
    flags = [*COMMON, "--mixed_precision", precision, "--plugin", "3d", *division, *degrees]
    run = train_on(ranks, tmp_path, *flags, model_dir=model_of("llama", True))
    assert run.code == 0, run.output
    reference = whole("llama", True).metrics
    assert len(run.metrics) == len(reference)
    for ours, theirs in zip(run.metrics, reference, strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=0.05)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.05)


def test_a_pipeline_longer_than_its_micro_batches_is_refused(train_on: Callable[..., Any], tmp_path: Path) -> None:
    run = train_on(2, tmp_path, *FP32, "--plugin", "3d", "--zero", 0, "--pp", 2)
    assert run.code == 2
    assert "--accumulation_steps 1 cannot fill a pipeline of --pp 2 stages; pass at least 2" in run.output


@pytest.mark.parametrize("ranks", [4, pytest.param(6, marks=pytest.mark.long)])
def test_stages_that_train_nothing_go_without_zero(
    train_on: Callable[..., Any], model_of: Callable[..., Path], tmp_path: Path, ranks: int
) -> None:
    flags = [*COMMON, "--plugin", "3d", "--pp", ranks // 2, "--mixed_precision", "bf16", "--freeze_non_embeds_params"]
    division = ["--micro_batch_size", 1, "--accumulation_steps", 4]
    run = train_on(ranks, tmp_path, *flags, *division, model_dir=model_of("llama"))
    assert run.code == 0, run.output
    assert "--zero 0 instead of 1, because there are pipeline stages that train nothing" in run.output
    assert run.metrics[-1]["loss"] < run.metrics[0]["loss"]


@pytest.mark.parametrize(
    ("ranks", "degrees", "reason"),
    [
        (3, ["--tp", 2], "3 ranks cannot be divided by pp 1 x tp 2 x sp 1; start a multiple of 2 ranks"),
        (4, ["--tp", 4], "num_key_value_heads 2, which tp x sp = 4 does not divide"),
    ],
)
def test_a_division_that_is_refused_discards_nothing(
    train_on: Callable[..., Any],
    model_of: Callable[..., Path],
    tmp_path: Path,
    ranks: int,
    degrees: list[object],
    reason: str,
) -> None:
    first = train_on(1, tmp_path, *FP32, "--save_interval", 2, model_dir=model_of("llama"))
    assert first.code == 0, first.output
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    flags = [*COMMON, "--mixed_precision", "bf16", "--plugin", "3d", "--overwrite", *degrees]
    refused = train_on(ranks, tmp_path, *flags, model_dir=model_of("llama"))
    assert refused.code == 2
    assert reason in refused.output
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == before
