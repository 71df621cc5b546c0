"""PPO as a whole: `train.py --stage ppo` on tiny models."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings
from colossal_llama2.dataset.prepare_dataset import main as prepare_set

FUNCTION = """
def short(prompts, answers, records):
    assert len(prompts) == len(answers) == len(records)
    assert all(record["prompt"] in prompt for record, prompt in zip(records, prompts))
    return [1.0 - 0.1 * len(answer.split()) for answer in answers]
"""
FLAGS = [
    "--plugin", "ddp", "--mixed_precision", "fp32", "--max_steps", 3, "--num_epochs", 9, "--rollout_batch", 8,
    "--max_new_tokens", 6, "--ppo_minibatches", 2, "--ppo_epochs", 2, "--micro_batch_size", 2, "--lr", 1e-3,
    "--generation_batch", 3, "--ptx_batch_size", 2, "--adaptive_kl", 6.0, "--normalise_reward",
]  # fmt: skip


@pytest.fixture(scope="session")
def prompts_dir(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Path:
    """Give a set of 30 prompts."""
    work, draw = tmp_path_factory.mktemp("prompts"), random.Random(3)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    records = [{"prompt": " ".join(draw.choice(words) for _ in range(draw.randint(1, 9)))} for _ in range(30)]
    source = work / "prompts.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    prepare_set(
        PrepareSetSettings(
            type="prompt",
            data_input_dirs=str(source),
            tokenizer_dir=llama_tokenizer_dir,
            data_arrow_output_dir=work / "set",
            chat_template="llama2",
            max_length=64,
            num_spliced_dataset_bins=2,
            num_workers=1,
        )
    )
    return work / "set"


@pytest.fixture(scope="session")
def function(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the name of a reward function in a file of its own."""
    path = tmp_path_factory.mktemp("reward") / "paid.py"
    path.write_text(FUNCTION, encoding="utf-8")
    return f"{path}:short"


@pytest.fixture(scope="session")
def ppo_on(
    run_train: Callable[..., Any], tiny_model_dir: Path, prompts_dir: Path, sft_dir: Path, function: str
) -> Callable[..., Any]:
    """Give a function that runs PPO on a number of ranks, paid by the function, with rows to remember."""

    def run(ranks: int, save_dir: Path, *flags: object) -> Any:
        base = [
            "--stage", "ppo", "--pretrained", tiny_model_dir, "--dataset", prompts_dir, "--save_dir", save_dir,
            "--max_length", 64, "--save_interval", 0, "--log_interval", 1, "--reward_function", function,
            "--ptx_dataset", sft_dir, *FLAGS,
        ]  # fmt: skip
        return run_train(ranks, save_dir, *base, *flags)

    return run


def told(run: Any) -> list[dict[str, Any]]:
    """Return a finished run's figures, without what the clock and the memory say."""
    assert run.code == 0, run.output
    timed = ("seconds", "tokens_per_second", "mfu", "memory", "data_seconds", "samples_per_second")
    return [
        {name: value for name, value in line.items() if name not in timed and not name.startswith("seconds_")}
        for line in run.metrics
    ]


def differences(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return every figure that is not the same in both, to the last bit."""
    assert len(ours) == len(theirs) > 0
    return {
        name: (line[name], other.get(name))
        for line, other in zip(ours, theirs, strict=True)
        for name in line
        # what a key-value cache rounds depends on where memory lies
        if line[name] != (pytest.approx(other[name], abs=1e-5) if name == "sampling_gap" else other.get(name))
    }


@pytest.fixture(scope="session")
def one_rank_run(tmp_path_factory: pytest.TempPathFactory, ppo_on: Callable[..., Any]) -> Any:
    """Give a finished run of one rank."""
    return ppo_on(1, tmp_path_factory.mktemp("ppo") / "run", "--save_interval", 2)


def test_a_run_tells_what_it_does_and_leaves_whole_models(one_rank_run: Any) -> None:
    lines = told(one_rank_run)
    assert [line["step"] for line in lines] == [1, 2, 3]
    first = lines[0]
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)  # the policy begins as its reference
    assert first["sampling_gap"] < 1e-4
    assert 0 < first["entropy"] < 6.5
    assert first["ptx_loss"] > 1
    assert first["ratio"] == pytest.approx(1.0, abs=0.2)
    assert lines[-1]["kl"] != 0
    assert len(first["samples"]) == 2
    assert first["samples"][0]["reward"] >= first["samples"][1]["reward"]
    policy = AutoModelForCausalLM.from_pretrained(one_rank_run.save_dir / "modeling")
    assert policy.num_parameters() > 0
    assert (one_rank_run.save_dir / "critic" / "config.json").is_file()
    template = (one_rank_run.save_dir / "modeling" / "chat_template.jinja").read_text(encoding="utf-8")
    assert "[INST]" in template


@pytest.mark.long
def test_two_ranks_do_what_one_does(one_rank_run: Any, ppo_on: Callable[..., Any], tmp_path: Path) -> None:
    lines = told(ppo_on(2, tmp_path / "two", "--plugin", "zero2"))
    for line, expected in zip(lines, told(one_rank_run), strict=True):
        shown = [sample["answer"] for sample in line.pop("samples")]
        assert shown == [sample["answer"] for sample in expected.pop("samples")]
        assert line == pytest.approx(expected, rel=2e-3, abs=2e-4)


@pytest.mark.long
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(
    one_rank_run: Any, ppo_on: Callable[..., Any], tmp_path: Path
) -> None:
    whole = told(ppo_on(2, tmp_path / "whole", "--plugin", "zero2", "--save_interval", 2))
    (checkpoint,) = (tmp_path / "whole").glob("epoch-*_step-2")
    shutil.copytree(checkpoint, tmp_path / "again" / checkpoint.name)
    again = told(
        ppo_on(2, tmp_path / "again", "--plugin", "zero2", "--load_checkpoint", tmp_path / "again" / checkpoint.name)
    )
    assert differences(again, whole[2:]) == {}


@pytest.mark.long
@pytest.mark.parametrize(
    "flags",
    [
        ("--plugin", "zero2", "--mixed_precision", "bf16"),
        ("--plugin", "zero2_cpu", "--mixed_precision", "fp16"),
        ("--plugin", "gemini", "--mixed_precision", "bf16"),
        ("--plugin", "3d", "--tp", 2, "--zero", 0, "--mixed_precision", "fp32"),
        ("--plugin", "zero2", "--lora_rank", 4, "--mixed_precision", "bf16"),
    ],
    ids=["zero2", "zero2_cpu", "gemini", "tp2", "lora"],
)
def test_every_plugin_learns_and_resumes(
    ppo_on: Callable[..., Any], one_rank_run: Any, tmp_path: Path, flags: tuple[object, ...]
) -> None:
    exact = "fp32" in flags
    whole = told(ppo_on(2, tmp_path / "whole", "--save_interval", 2, *flags))
    for line in whole:
        assert line["sampling_gap"] < (1e-3 if exact else 0.15)
    assert whole[0]["kl"] == pytest.approx(0.0, abs=1e-3)
    assert whole[-1]["kl"] != 0
    if exact:
        for line, expected in zip(whole, told(one_rank_run), strict=True):
            assert line["loss"] == pytest.approx(expected["loss"], rel=1e-2, abs=1e-3)
    (checkpoint,) = (tmp_path / "whole").glob("epoch-*_step-2")
    again = told(ppo_on(2, tmp_path / "again", "--load_checkpoint", checkpoint, *flags))
    assert differences(again, whole[2:]) == {}


@pytest.mark.long
def test_trouble_ends_a_run_after_a_checkpoint_that_can_be_continued(
    ppo_on: Callable[..., Any], tmp_path: Path
) -> None:
    # at such a temperature every token is as likely as any other, so hardly an answer ends
    flags = (
        "--stop_on_trouble", "--rollout_batch", 2, "--max_new_tokens", 2, "--ppo_epochs", 1, "--ppo_minibatches", 1,
        "--temperature", 1000, "--lr", 1e-9, "--num_epochs", 50, "--log_interval", 100,
    )  # fmt: skip
    stopped = ppo_on(1, tmp_path / "run", *flags, "--max_steps", 20)
    assert stopped.code == 3, stopped.output
    assert "never end" in stopped.output
    assert [line["step"] for line in stopped.metrics] == list(range(1, 13))
    assert list((tmp_path / "run").glob("epoch-*_step-12"))
    assert not (tmp_path / "run" / "modeling").exists()
    gone_on = ppo_on(1, tmp_path / "run", *flags, "--max_steps", 13, "--load_checkpoint", "latest")
    assert gone_on.code == 0, gone_on.output
    assert (tmp_path / "run" / "modeling" / "config.json").is_file()


def test_what_does_not_belong_together_is_refused(
    ppo_on: Callable[..., Any], tmp_path: Path, tiny_model_dir: Path, sft_dir: Path
) -> None:
    refusals = {
        ("--dataset", sft_dir): "type sft",
        ("--reward_model", tiny_model_dir): "no head that scores",
        ("--load_checkpoint", tiny_model_dir / "nothing"): "neither a checkpoint",
        ("--max_new_tokens", 120): "positions",
        ("--rollout", "vllm"): "vLLM is not installed",
    }
    for flags, said in refusals.items():
        run = ppo_on(1, tmp_path / "run", *flags)
        assert run.code == 2, run.output
        assert said in run.output
        assert not (tmp_path / "run").exists()


def test_a_reward_model_pays_and_the_critic_starts_from_it(
    ppo_on: Callable[..., Any], align_on: Callable[..., Any], preference_dir: Path, tmp_path: Path
) -> None:
    plain = ("--plugin", "ddp", "--mixed_precision", "fp32", "--max_steps", 1)
    scorer = align_on(1, "reward", preference_dir, tmp_path / "reward", *plain)
    assert scorer.code == 0, scorer.output
    flags = ("--reward_model_weight", 2.0, "--reward_function_weight", 3.0, "--max_steps", 1)
    raw = ("--no_normalise_reward", "--save_interval", 1)
    run = ppo_on(1, tmp_path / "ppo", "--reward_model", tmp_path / "reward" / "modeling", *flags, *raw)
    (line,) = told(run)
    assert line["reward_model"] != 0
    assert line["reward"] == pytest.approx(2 * line["reward_model"] + 3 * line["reward_function"], abs=1e-5)
    critic = json.loads((tmp_path / "ppo" / "critic" / "config.json").read_text(encoding="utf-8"))
    assert critic["architectures"] == ["LlamaForSequenceClassification"]
