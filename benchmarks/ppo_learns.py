"""PPO learns, and with a pretraining loss beside it forgets nothing: a tiny Llama, a rule for a reward, one CPU.

    python benchmarks/ppo_learns.py [--rollouts 50] [--output FILE.json]

A model of two layers learns to write sentences such as "the cat sees 3 dogs", byte by byte, with train.py. PPO then
pays for answers in which there is a digit, and takes 0.05 off for every character beyond the first, so the best reward
is 1. Five seeds; and one of them without the pretraining loss. Every few rollouts the policy's perplexity on held-out
sentences is measured, whole documents as it was pretrained on them. The curves are drawn beside the figures.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.align import ppo_stage
from colossal_llama2.align.ppo_settings import PpoOptions, PpoSettings, PtxOptions, RewardOptions, RolloutOptions
from colossal_llama2.dataset.preparation import MixOptions, PrepareSettings, SpliceOptions, WorkOptions
from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings
from colossal_llama2.dataset.prepare_dataset import main as prepare_set
from colossal_llama2.dataset.prepare_pretrain_dataset import main as prepare_corpus
from colossal_llama2.train import pretrain
from colossal_llama2.train.settings import (
    DataOptions,
    ModelOptions,
    OptimizerOptions,
    OutputOptions,
    ParallelOptions,
    TrainSettings,
)

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}"
    "{% endif %}{% endfor %}"
)
ANIMALS = ("cat", "dog", "bird", "fish", "horse", "mouse")
VERBS = ("sees", "likes", "finds", "follows")
LENGTH = 48
CPU = ParallelOptions(plugin="ddp", mixed_precision="fp32")


@dataclass(frozen=True)
class LearnsSettings:
    """Let a tiny policy learn a rule, with and without a pretraining loss."""

    rollouts: int = 50
    """Rollouts of a run, 64 answers each."""
    seeds: int = 5
    """Runs with the pretraining loss."""
    pretraining_steps: int = 200
    """Steps of pretraining before, 16 rows each."""
    work_dir: Path | None = None
    """Where everything is made, and kept; a base that an earlier call made there is taken as it is."""
    output: Path = ROOT / "benchmarks" / "results" / "ppo_learns.json"
    """Where the figures are written; the drawing beside it."""


def digit_and_short(prompts: list[str], answers: list[str], records: list[dict[str, Any]]) -> list[float]:
    """Pay 1 for a digit, and take 0.05 off for every character beyond the first."""
    return [
        float(any(character in "0123456789" for character in answer)) - 0.05 * max(len(answer) - 1, 0)
        for answer in answers
    ]


def main(settings: LearnsSettings) -> int:
    """Run everything; return 1 when a promise is broken."""
    with tempfile.TemporaryDirectory() as folder:
        work = settings.work_dir or Path(folder)
        made = work / "base" / "modeling"
        base = made if made.is_dir() else make_base(work, settings.pretraining_steps)
        start = perplexity(base, work)
        print(f"base: perplexity {start:.4f} a byte", flush=True)
        runs = [learn(settings, work, base, seed, ptx=True) for seed in range(settings.seeds)]
        runs.append(learn(settings, work, base, 0, ptx=False))
    for run in runs:
        run["perplexities"] = [[0, start], *run["perplexities"]]
        run["perplexity_change"] = run["perplexities"][-1][1] / start - 1.0
        run["final_reward"] = sum(run["reward"][-5:]) / 5
        run["largest_kl"] = max(run["kl"])
        print(
            f"ptx {run['ptx']}, seed {run['seed']}: reward {run['reward'][0]:.3f} -> {run['final_reward']:.3f}, "
            f"largest KL {run['largest_kl']:.2f}, perplexity {run['perplexity_change']:+.1%}",
            flush=True,
        )
    kept = [run for run in runs if run["ptx"]]
    promises = {
        "reward_above_0.9_for_every_seed": all(run["final_reward"] > 0.9 for run in kept),
        "kl_below_25_nats_an_answer": all(run["largest_kl"] < 25 for run in kept),
        "perplexity_within_5_percent_with_ptx": all(abs(run["perplexity_change"]) < 0.05 for run in kept),
        "perplexity_not_within_5_percent_without": all(
            run["perplexity_change"] > 0.05 for run in runs if not run["ptx"]
        ),
    }
    report = {
        "machine": describe_machine(),
        "settings": {**asdict(settings), "output": None, "work_dir": None},
        "promises": promises,
    }
    settings.output.write_text(json.dumps({**report, "runs": runs}, indent=1, default=str) + "\n", encoding="utf-8")
    draw(runs, settings.output.with_suffix(".png"))
    print(json.dumps(promises, indent=1))
    return 0 if all(promises.values()) else 1


def make_base(work: Path, steps: int) -> Path:
    """Make tokenizer, sets and model, and pretrain it with the project's own command; return its folder."""
    work.mkdir(exist_ok=True)
    tokenizer, draw = make_tokenizer(work / "tokenizer"), random.Random(0)
    sentences = [sentence(draw) for _ in range(4000)]
    (work / "text").mkdir()
    lines = [json.dumps({"source": "", "target": one, "category": "toy"}) + "\n" for one in sentences]
    (work / "text" / "toy.jsonl").write_text("".join(lines[200:]), encoding="utf-8")
    (work / "held_out.jsonl").write_text("".join(lines[:200]), encoding="utf-8")
    prepare_corpus(
        PrepareSettings(
            data_input_dirs=str(work / "text"),
            tokenizer_dir=tokenizer,
            data_cache_dir=work / "cache",
            data_jsonl_output_dir=None,
            data_arrow_output_dir=work / "corpus",
            splicing=SpliceOptions(max_length=LENGTH * 4),
            mix=MixOptions(num_spliced_dataset_bins=1),
            work=WorkOptions(num_workers=1),
        )
    )
    prompts = [json.dumps({"prompt": " ".join(sentence(draw).split()[:2])}) + "\n" for _ in range(500)]
    (work / "prompts.jsonl").write_text("".join(prompts), encoding="utf-8")
    (work / "template.jinja").write_text(TEMPLATE, encoding="utf-8")
    prepare_set(
        PrepareSetSettings(
            type="prompt",
            data_input_dirs=str(work / "prompts.jsonl"),
            tokenizer_dir=tokenizer,
            data_arrow_output_dir=work / "prompts",
            chat_template=str(work / "template.jinja"),
            max_length=LENGTH,
            num_spliced_dataset_bins=1,
            num_workers=1,
        )
    )
    make_model(work / "random", tokenizer)
    run = TrainSettings(
        model=ModelOptions(work / "random"),
        data=DataOptions(
            (work / "corpus",), num_epochs=100, max_steps=steps, micro_batch_size=16, max_length=LENGTH * 4
        ),
        output=OutputOptions(work / "base", save_interval=0, log_interval=100),
        optimizer=OptimizerOptions(lr=3e-3),
        parallel=CPU,
    )
    assert pretrain.main(run) == 0
    return work / "base" / "modeling"


def sentence(draw: random.Random) -> str:
    """Make a sentence of the toy language."""
    animal = draw.choice(ANIMALS)
    return f"the {draw.choice(ANIMALS)} {draw.choice(VERBS)} {draw.randint(2, 9)} {animal}s"


def make_tokenizer(folder: Path) -> Path:
    """Make a tokenizer of bytes and two special tokens."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    special = ["<|begin|>", "<|end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[0], "eos_token": special[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def make_model(folder: Path, tokenizer: Path) -> None:
    """Make a random Llama of two layers and 64 numbers a token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH * 4,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in tokenizer.iterdir():
        shutil.copyfile(path, folder / path.name)


def learn(settings: LearnsSettings, work: Path, base: Path, seed: int, ptx: bool) -> dict[str, Any]:
    """Run PPO; return its curves."""
    save_dir = work / f"ppo-{seed}-{ptx}"
    interval = max(settings.rollouts // 5, 1)
    run = PpoSettings(
        model=ModelOptions(base),
        data=DataOptions((work / "prompts",), num_epochs=100, max_steps=settings.rollouts, micro_batch_size=64),
        output=OutputOptions(save_dir, save_interval=interval, log_interval=10, overwrite=True),
        optimizer=OptimizerOptions(lr=2e-3, weight_decay=0.0, warmup_steps=4, seed=seed),
        parallel=CPU,
        reward=RewardOptions(reward_function=f"{Path(__file__)}:digit_and_short"),
        rollouts=RolloutOptions(rollout_batch=64, generation_batch=64, max_new_tokens=24),
        ppo=PpoOptions(ppo_epochs=2, ppo_minibatches=1, kl_coef=0.01, value_clip=0.0),
        ptx=PtxOptions((work / "corpus",) if ptx else (), ptx_coef=0.5, ptx_batch_size=8),
    )
    assert ppo_stage.main(run) == 0
    lines = [json.loads(line) for line in (save_dir / "run" / "metrics.jsonl").read_text().splitlines()]
    checkpoints = sorted(save_dir.glob("epoch-*_step-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return {
        "ptx": ptx,
        "seed": seed,
        **{name: [line[name] for line in lines] for name in ("reward", "kl", "entropy", "length", "ended", "ptx_loss")},
        "seconds": sum(line["seconds"] for line in lines),
        "perplexities": [
            [int(path.name.rpartition("-")[2]), perplexity(path / "modeling", work)] for path in checkpoints
        ],
        "last_sample": next(line["samples"] for line in reversed(lines) if "samples" in line),
    }


@torch.no_grad()
def perplexity(model_dir: Path, work: Path) -> float:
    """Return the perplexity a byte of held-out sentences, each a document from begin to end."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for line in (work / "held_out.jsonl").read_text(encoding="utf-8").splitlines():
        ids = torch.tensor([[0, *tokenizer.encode(json.loads(line)["target"]), 1]])
        logits = model(ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return math.exp(total / count)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Draw reward, KL and perplexity over rollouts."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for run in runs:
        label = f"with PTX, seed {run['seed']}" if run["ptx"] else "without PTX"
        style: dict[str, Any] = {"color": None if run["ptx"] else "black", "ls": "-" if run["ptx"] else "--"}
        axes[0].plot(run["reward"], label=label, **style)
        axes[1].plot(run["kl"], label=label, **style)
        axes[2].plot(*zip(*run["perplexities"], strict=True), label=label, marker="o", ms=3, **style)
    for axis, title in zip(
        axes, ("reward (best: 1)", "KL of an answer, nats", "perplexity a byte, pretraining text"), strict=True
    ):
        axis.set_title(title)
        axis.set_xlabel("rollout")
        axis.grid(alpha=0.3)
    axes[2].set_yscale("log")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    cli.run(LearnsSettings, main)
