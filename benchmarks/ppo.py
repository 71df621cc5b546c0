"""How fast a PPO rollout goes, and what it takes: random weights, random prompts, `train.py --stage ppo` as it is.

    python benchmarks/ppo.py --model_size 125m [--num_ranks 1] [--plugin zero2] [--output FILE.json]

Policy, critic, reward model and reference all have the size named. Random weights hardly ever end an answer, so every
answer has --max_new_tokens, which is what such figures are usually given for. The first rollout is left out: it warms
up. FLOP/s are those of the forward and backward passes that PPO asks for, recomputation not counted.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings
from colossal_llama2.dataset.prepare_dataset import main as prepare_set
from colossal_llama2.model.embedding_names import build_without_memory
from colossal_llama2.train.flops import step_flops

ROOT = Path(__file__).resolve().parents[1]
# hidden size, layers, heads, key-value heads, intermediate size, vocabulary
SHAPES = {
    "tiny": (64, 2, 4, 4, 128, 512),
    "125m": (768, 12, 12, 12, 2048, 32_000),
    "350m": (1024, 24, 16, 16, 2816, 32_000),
    "1b": (2048, 22, 32, 4, 5632, 32_000),
    "7b": (4096, 32, 32, 32, 11_008, 32_000),
}
PROMPT_TOKENS = 64


@dataclass(frozen=True)
class PpoBenchmarkSettings:
    """Time PPO on random weights."""

    model_size: Literal["tiny", "125m", "350m", "1b", "7b"] = "tiny"
    """Parameters of each of the four models."""
    num_ranks: int = 1
    """Ranks to start on this machine."""
    plugin: str = "zero2"
    """ColossalAI plugin."""
    mixed_precision: str = "bf16"
    """What forward and backward compute in."""
    rollouts: int = 3
    """Rollouts to time, after one that is not."""
    rollout_batch: int = 32
    """Prompts of a rollout, over all ranks."""
    micro_batch_size: int = 8
    """Answers a rank computes at a time."""
    max_new_tokens: int = 128
    """Tokens of an answer."""
    flags: str = ""
    """More flags for train.py, separated by blanks: "--offload_frozen --use_grad_checkpoint"."""
    output: Path | None = None
    """Where the figures are written as well as printed."""


def main(settings: PpoBenchmarkSettings) -> None:
    """Make the inputs, run the stage, print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_inputs(work, settings)
        run(work, settings)
        lines = [json.loads(line) for line in (work / "save" / "run" / "metrics.jsonl").read_text().splitlines()]
        flops = step_flops(build_without_memory(work / "policy"))
    timed = lines[1:]
    parts = ("generate", "score", "advantage", "optimise")
    seconds = {part: statistics.fmean(line[f"seconds_{part}"] for line in timed) for part in parts}
    whole = statistics.fmean(line["seconds"] for line in timed)
    length = statistics.fmean(
        (line["tokens"] - before["tokens"]) / settings.rollout_batch for before, line in zip(lines, timed, strict=False)
    )
    # generation, policy, reference, critic and reward model are a forward pass each; policy and critic learn once
    arithmetic = flops.of(int(length * settings.rollout_batch), [int(length)] * settings.rollout_batch) * (5 / 3 + 2)
    report = {
        "machine": describe_machine(),
        "settings": {name: value for name, value in asdict(settings).items() if name != "output"},
        "samples_per_second": settings.rollout_batch / whole,
        "seconds_a_rollout": whole,
        "share_of_time": {part: value / whole for part, value in seconds.items()},
        "tokens_a_sample": length,
        "tflops": arithmetic / whole / 1e12,
        "peak_memory_gib": max(line["memory"] for line in lines) / 2**30,
    }
    text = json.dumps(report, indent=1) + "\n"
    print(text)
    if settings.output is not None:
        settings.output.write_text(text, encoding="utf-8")


def make_inputs(work: Path, settings: PpoBenchmarkSettings) -> None:
    """Make a tokenizer, a random policy, a random reward model and prompts of 64 tokens."""
    hidden, layers, heads, groups, intermediate, vocabulary = SHAPES[settings.model_size]
    make_tokenizer(work / "policy", vocabulary)
    make_tokenizer(work / "reward", vocabulary)
    save_random(work, vocabulary, {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": intermediate,
        "max_position_embeddings": PROMPT_TOKENS + settings.max_new_tokens,
    })  # fmt: skip
    draw = random.Random(0)
    prompts = ["".join(draw.choice("abcdefgh") for _ in range(PROMPT_TOKENS - 1)) for _ in range(256)]
    (work / "prompts.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in prompts))
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}"
    (work / "template.jinja").write_text(template + "{{ eos_token }}{% endif %}{% endfor %}")
    prepare_set(
        PrepareSetSettings(
            type="prompt",
            data_input_dirs=str(work / "prompts.jsonl"),
            tokenizer_dir=work / "policy",
            data_arrow_output_dir=work / "prompts",
            chat_template=str(work / "template.jinja"),
            max_length=PROMPT_TOKENS,
            num_spliced_dataset_bins=1,
            num_workers=1,
        )
    )


def make_tokenizer(folder: Path, vocabulary: int) -> None:
    """Make a tokenizer of bytes, with pieces that no text has up to the size asked for."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    special = ["<|begin|>", "<|end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"unused{number}" for number in range(vocabulary - len(tokens))]
    tokenizer = Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[0], "eos_token": special[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def save_random(work: Path, vocabulary: int, shape: dict[str, Any]) -> None:
    """Save a random language model and a random scorer of the same shape, in bf16."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    config = LlamaConfig(vocab_size=vocabulary, bos_token_id=0, eos_token_id=1, pad_token_id=1, num_labels=1, **shape)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(work / "policy")
    LlamaForSequenceClassification(config).to(torch.bfloat16).save_pretrained(work / "reward")


def run(work: Path, settings: PpoBenchmarkSettings) -> None:
    """Run the stage under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(settings.num_ranks)]
    flags = [
        *("--stage", "ppo", "--pretrained", work / "policy", "--reward_model", work / "reward"),
        *("--dataset", work / "prompts", "--save_dir", work / "save", "--save_interval", 0, "--num_epochs", 1000),
        *("--plugin", settings.plugin, "--mixed_precision", settings.mixed_precision, "--num_samples", 0),
        *("--max_steps", settings.rollouts + 1, "--rollout_batch", settings.rollout_batch),
        *("--generation_batch", settings.rollout_batch, "--micro_batch_size", settings.micro_batch_size),
        *("--max_new_tokens", settings.max_new_tokens, "--max_length", PROMPT_TOKENS, *settings.flags.split()),
    ]
    subprocess.run([sys.executable, *launcher, str(ROOT / "train.py"), *map(str, flags)], check=True)


if __name__ == "__main__":
    cli.run(PpoBenchmarkSettings, main)
