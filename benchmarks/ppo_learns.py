"""PPO learns, and with a pretraining loss beside it forgets nothing: a tiny Llama, a rule for a reward, one CPU.

    python benchmarks/ppo_learns.py [--rollouts 50] [--output FILE.json]

A model of two layers learns two things with train.py, byte by byte: to write sentences such as "the cat sees 3 dogs",
and to answer "ask cat>" with letters and digits at random. PPO then pays for answers in which there is a digit, and
takes 0.05 off for every character beyond the first, so the best reward is 1. Five seeds with a loss on the sentences
beside it; and one of them again without. Every few rollouts the policy's perplexity on held-out sentences is measured.
The curves are drawn beside the figures.
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

from benchmarks.byte_tokenizer import make_byte_tokenizer
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
    "{% else %}>{% endif %}{% endfor %}"
)
ANIMALS = ("cat", "dog", "bird", "fish", "horse", "mouse")
VERBS = ("sees", "likes", "finds", "follows")
LENGTH = 48
CPU = ParallelOptions(plugin="ddp", mixed_precision="fp32")


@dataclass(frozen=True)
class LearnsSettings:
    """Let a tiny policy learn a rule, with and without a pretraining loss."""

    rollouts: int = 25
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
        "kl_below_10_nats_an_answer": all(run["largest_kl"] < 10 for run in kept),
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
    tokenizer, draw = work / "tokenizer", random.Random(0)
    make_byte_tokenizer(tokenizer)
    sentences = [record("", sentence(draw)) for _ in range(3000)]
    answered = [record(f"ask {draw.choice(ANIMALS)}>", at_random(draw)) for _ in range(3000)]
    (work / "held_out.jsonl").write_text("".join(sentences[:200]), encoding="utf-8")
    for name, lines in (("sentences", sentences[200:]), ("answers", answered)):
        (work / name).mkdir()
        (work / name / "toy.jsonl").write_text("".join(lines), encoding="utf-8")
    prepare(work, "sentences", ["sentences"])
    prepare(work, "corpus", ["sentences", "answers"])
    prompts = [json.dumps({"prompt": f"ask {draw.choice(ANIMALS)}"}) + "\n" for _ in range(500)]
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
            (work / "corpus-set",), num_epochs=100, max_steps=steps, micro_batch_size=16, max_length=LENGTH * 4
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


def at_random(draw: random.Random) -> str:
    """Make an answer of letters and digits, 1 to 12 of them."""
    return "".join(draw.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(draw.randint(1, 12)))


def record(source: str, target: str) -> str:
    """Write a pretraining record."""
    return json.dumps({"source": source, "target": target, "category": "toy"}) + "\n"


def prepare(work: Path, name: str, sources: list[str]) -> None:
    """Prepare a corpus as `work`/`name`-set."""
    prepare_corpus(
        PrepareSettings(
            data_input_dirs=",".join(str(work / source) for source in sources),
            tokenizer_dir=work / "tokenizer",
            data_cache_dir=work / f"{name}-cache",
            data_jsonl_output_dir=None,
            data_arrow_output_dir=work / f"{name}-set",
            splicing=SpliceOptions(max_length=LENGTH * 4),
            mix=MixOptions(num_spliced_dataset_bins=1),
            work=WorkOptions(num_workers=1),
        )
    )


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
        optimizer=OptimizerOptions(lr=1e-3, weight_decay=0.0, warmup_steps=8, seed=seed),
        parallel=CPU,
        reward=RewardOptions(reward_function=f"{Path(__file__)}:digit_and_short"),
        rollouts=RolloutOptions(rollout_batch=64, generation_batch=64, max_new_tokens=16),
        ppo=PpoOptions(critic_lr=2e-3, ppo_epochs=2, ppo_minibatches=2, kl_coef=0.02),
        ptx=PtxOptions((work / "sentences-set",) if ptx else (), ptx_coef=0.5, ptx_batch_size=8),
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
