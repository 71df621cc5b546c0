"""GRPO: the loss of plain PyTorch, one rank as two, resumed as uninterrupted, and a reward that rises."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from colossal_llama2 import cli
from colossal_llama2.align.experience import Judged, Shaping, shape
from colossal_llama2.align.grpo import GroupedPrompts, GrpoLearner
from colossal_llama2.align.grpo_opening import open_grpo
from colossal_llama2.align.grpo_settings import GrpoSettings
from colossal_llama2.align.ppo_learning import Learning
from colossal_llama2.align.ppo_losses import PolicyClip
from colossal_llama2.align.rollouts import Answer
from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings
from colossal_llama2.dataset.prepare_dataset import main as prepare_set
from colossal_llama2.errors import InputError

FUNCTION = """
def vowels(prompts, answers, records):
    assert len(prompts) == len(answers) == len(records)
    return [sum(letter in "aeiou" for letter in answer) / max(len(answer), 1) for answer in answers]
"""
FLAGS = [
    "--mixed_precision", "fp32", "--max_length", 64, "--log_interval", 1, "--num_epochs", 9, "--rollout_batch", 4,
    "--group_size", 4, "--max_new_tokens", 6, "--grpo_minibatches", 2, "--grpo_epochs", 2, "--micro_batch_size", 2,
    "--generation_batch", 3, "--eps_clip_high", 0.28,
]  # fmt: skip
PROMPTS = [[1, 5, 9], [1, 7]]
ANSWERS = [[11, 12], [13, 14, 15, 2], [16], [17, 18, 2], [19, 20], [21, 2]]
SCORES, SIZE, BETA = [0.0, 1.0, 0.5, 2.0, 2.0, -1.0], 3, 0.3


def judged() -> list[Judged]:
    draw = np.random.default_rng(4)
    found = []
    for number, ids in enumerate(ANSWERS):
        old, reference = (draw.normal(-6.0, 0.6, len(ids)).astype(np.float32) for _ in range(2))
        answer = Answer(np.array(ids, dtype=np.int32), old, ids[-1] == 2)
        prompt = np.array(PROMPTS[number // SIZE], dtype=np.int32)
        found.append(Judged(prompt, answer, old, reference, np.zeros(len(ids), np.float32), SCORES[number], 0.0))
    return found


def plain_loss(model: Any, of_answers: bool) -> torch.Tensor:
    """Compute the loss of all answers, one at a time, from the paper."""
    losses, weights = [], []
    for number, one in enumerate(judged()):
        group = SCORES[number // SIZE * SIZE : number // SIZE * SIZE + SIZE]
        advantage = float((SCORES[number] - np.mean(group)) / (np.std(group, ddof=1) + 1e-4))
        ids = torch.tensor([*one.prompt.tolist(), *one.answer.ids.tolist()])
        said = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
        for place in range(len(one.answer.ids)):
            at = len(one.prompt) + place
            own = said[at - 1, ids[at]]
            ratio = torch.exp(own - float(one.log_probs[place]))
            kept = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
            gap = float(one.reference_log_probs[place]) - own
            losses.append(-kept + BETA * (torch.exp(gap) - gap - 1))
            weights.append(1 / len(one.answer.ids) if of_answers else 1.0)
    return (torch.stack(losses) * torch.tensor(weights)).sum() / sum(weights)


@pytest.mark.parametrize("of_answers", [True, False])
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_the_loss_and_its_gradient_are_those_of_plain_torch(
    boosted: Callable[..., Any], tiny_model_dir: Path, of_answers: bool, micro_batch_size: int
) -> None:
    session = boosted()
    learning = Learning(1, 1, micro_batch_size, 0.2, None, 0.0, "share", 1.0, of_answers, seed=0)
    learner = GrpoLearner(session, session, None, learning, SIZE, BETA, PolicyClip(0.2, 0.28))
    experience = shape(judged(), torch.tensor(SCORES), 0.0, Shaping(lam=1.0, whiten=False))
    tally = learner.learn(experience, step=0, actor_learns=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, attn_implementation="eager")
    loss = plain_loss(model, of_answers)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    means = tally.means(speaks=True)
    assert means["policy_loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert tally.actor_grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert means["clip_share"] > 0, "nothing was clipped, so that was not compared"


def test_every_prompt_is_asked_as_often_as_its_group_is_large() -> None:
    taken = [(0, 4), (0, 2), (1, 3)]
    prompts = SimpleNamespace(num_prompts=5, bucket_sizes=[5], _order=lambda seed, epoch: [4, 2, 0, 1, 3])
    grouped = GroupedPrompts(prompts, 2)  # type: ignore[arg-type]
    assert grouped.num_prompts == 10
    assert grouped.take(0, 0, 0, 4) == [taken[0], taken[0], taken[1], taken[1]]
    assert grouped.take(0, 0, 8, 4) == [(0, 3), (0, 3), (1, 4), (1, 4)]


@pytest.fixture(scope="session")
def asked_dir(tmp_path_factory: pytest.TempPathFactory, llama_tokenizer_dir: Path) -> Path:
    """Give a set of 12 prompts."""
    work, draw = tmp_path_factory.mktemp("asked"), random.Random(3)
    words = ["the", "quick", "brown", "fox", "jumps", "over"]
    records = [{"prompt": " ".join(draw.choice(words) for _ in range(draw.randint(1, 9)))} for _ in range(12)]
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
def paid_by(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the name of a reward function in a file of its own."""
    path = tmp_path_factory.mktemp("reward") / "paid.py"
    path.write_text(FUNCTION, encoding="utf-8")
    return f"{path}:vowels"


@pytest.fixture(scope="session")
def grpo_on(run_train: Callable[..., Any], tiny_model_dir: Path, asked_dir: Path, paid_by: str) -> Callable[..., Any]:
    """Give a function that runs GRPO on a number of ranks."""

    def run(ranks: int, save_dir: Path, *flags: object) -> Any:
        base = ["--stage", "grpo", "--pretrained", tiny_model_dir, "--dataset", asked_dir, "--save_dir", save_dir]
        return run_train(ranks, save_dir, *base, "--save_interval", 0, "--reward_function", paid_by, *FLAGS, *flags)

    return run


def told(run: Any) -> list[dict[str, Any]]:
    """Return a finished run's figures, without what the clock and the memory say."""
    assert run.code == 0, run.output
    timed = ("seconds", "tokens_per_second", "mfu", "memory", "data_seconds", "samples_per_second", "samples")
    return [
        {name: value for name, value in line.items() if name not in timed and not name.startswith("seconds_")}
        for line in run.metrics
    ]


def test_a_run_begins_as_its_reference_and_has_no_critic(grpo_on: Callable[..., Any], tmp_path: Path) -> None:
    run = grpo_on(1, tmp_path / "run", "--lr", 1e-3, "--max_steps", 2, "--plugin", "ddp", "--save_interval", 1)
    lines = told(run)
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert lines[1]["kl"] != 0.0
    assert not {"value_loss", "value_error", "explained_variance"} & lines[0].keys()
    assert lines[0]["sampling_gap"] < 1e-5
    (checkpoint,) = (tmp_path / "run").glob("epoch-*_step-1")
    assert not (checkpoint / "critic").exists()
    assert list((tmp_path / "run" / "modeling").glob("*.safetensors"))
    other = grpo_on(
        1, tmp_path / "other", "--max_steps", 2, "--plugin", "ddp", "--load_checkpoint", checkpoint, "--group_size", 8
    )
    assert other.code == 2
    assert "--group_size 4" in other.output


@pytest.mark.long
def test_the_reward_rises_and_a_resume_goes_on_as_if_nothing_had_been(
    grpo_on: Callable[..., Any], tmp_path: Path
) -> None:
    flags = ["--lr", 1e-2, "--max_steps", 6, "--plugin", "ddp", "--rollout_batch", 8, "--group_size", 8]
    whole = grpo_on(1, tmp_path / "whole", *flags, "--save_interval", 4)
    lines = told(whole)
    rewards = [line["reward"] for line in lines]
    assert sum(rewards[-2:]) > sum(rewards[:2]) + 0.05, rewards
    (checkpoint,) = (tmp_path / "whole").glob("epoch-*_step-4")
    resumed = grpo_on(1, tmp_path / "resumed", *flags, "--load_checkpoint", checkpoint)
    again = told(resumed)
    # two ways to the same number, whose rounding differs from process to process
    assert max(line.pop("sampling_gap") for line in [*again, *lines]) < 1e-5
    assert again == lines[4:] != []


@pytest.mark.long
@pytest.mark.parametrize(
    ("flags", "room"),
    [
        (["--plugin", "zero2"], 2e-3),
        (["--plugin", "3d", "--tp", 2, "--zero", 0], 2e-3),
        (["--plugin", "gemini", "--mixed_precision", "bf16"], None),
        (["--plugin", "zero2", "--lora_rank", 4], None),
    ],
    ids=["zero2", "tp2", "gemini", "lora"],
)
def test_two_ranks_do_what_one_does(
    grpo_on: Callable[..., Any], tmp_path: Path, flags: list[object], room: float | None
) -> None:
    two = told(grpo_on(2, tmp_path / "two", "--max_steps", 3, "--lr", 1e-3, *flags))
    assert len(two) == 3
    assert two[0]["kl"] == pytest.approx(0.0, abs=1e-1)
    if room is None:
        return
    one = told(grpo_on(1, tmp_path / "one", "--max_steps", 3, "--lr", 1e-3, "--plugin", "ddp"))
    for line, expected in zip(two, one, strict=True):
        assert line == pytest.approx(expected, rel=room, abs=2e-4)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--group_size", 1], "--group_size is 1"),
        (["--reward_function", ""], "nothing pays for answers"),
        (["--normalise_reward"], "--normalise_reward"),
        (["--plugin", "gemini_auto"], "gemini_auto"),
        (["--accumulation_steps", 2], "--accumulation_steps means nothing"),
        (["--max_new_tokens", 999], "positions, and the model has 128"),
        (["--kl_coef", "nan"], "--kl_coef is nan"),
        (["--dataset", "SFT"], "is a set of type sft, not prompt"),
    ],
)
def test_what_cannot_work_is_refused(
    tiny_model_dir: Path,
    asked_dir: Path,
    sft_dir: Path,
    paid_by: str,
    tmp_path: Path,
    flags: list[object],
    sentence: str,
) -> None:
    base = ["--pretrained", tiny_model_dir, "--dataset", asked_dir, "--save_dir", tmp_path / "out"]
    given = {str(name): str(value) for name, value in zip(base[::2], base[1::2], strict=True)}
    given |= {"--reward_function": paid_by, "--max_length": "64"}
    own = [str(sft_dir if part == "SFT" else part) for part in flags]
    switches = own if len(own) == 1 else []
    given |= {} if switches else {own[0]: own[1]}
    with pytest.raises(InputError) as error:
        open_grpo(cli.parse(GrpoSettings, [*(part for pair in given.items() for part in pair), *switches]))
    assert sentence in str(error.value)
    assert not (tmp_path / "out").exists()
