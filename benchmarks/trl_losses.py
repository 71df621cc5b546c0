"""Sets the losses of `align` beside those of TRL's trainers, on a tiny random model and TRL's own batches.

TRL is not a dependency: put it, and it alone, on PYTHONPATH, since everything it needs is installed for training.

    pip install --no-deps --target trl_only trl
    PYTHONPATH=trl_only python benchmarks/trl_losses.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.align.direct_losses import Pairs, dpo, kto, kto_reference_point, orpo, simpo
from colossal_llama2.align.log_probs import SequenceLogProbs, sequence_sums, token_log_probs
from colossal_llama2.align.reward_losses import reward_sums
from colossal_llama2.errors import InputError
from colossal_llama2.outputs import whole_file
from colossal_llama2.train.losses import next_token_loss_sum, next_token_losses

RESULTS_DIR = Path(__file__).resolve().parent / "results"
WORDS = list("abcdefghijklmnop")
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
PAIRS = [
    {"prompt": "a b c", "chosen": " d e f g", "rejected": " h i"},
    {"prompt": "b d", "chosen": " a", "rejected": " p o n m l"},
    {"prompt": "k", "chosen": " j i", "rejected": " a a a"},
    {"prompt": "e f", "chosen": " g h", "rejected": " h g"},
]
SINGLES = [
    {"prompt": pair["prompt"], "completion": pair[name], "label": name == "chosen"}
    for pair in PAIRS
    for name in ("chosen", "rejected")
]
ANSWERS = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS]

Batch = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Compare losses with TRL's."""

    output_file: Path = RESULTS_DIR / "trl_losses.json"
    """File to write the result to."""
    overwrite: bool = False
    """Replace the file if it exists."""


@dataclass(frozen=True)
class Case:
    """One loss of TRL and ours for the same batch.

    Attributes:
        trainer: name of the trainer, with its module within TRL.
        options: of its configuration.
        rows: what it is given as a data set.
        ours: maps model, reference model and batch to our loss.
    """

    trainer: str
    options: dict[str, Any]
    rows: list[Any]
    ours: Callable[[Any, Any, Batch], torch.Tensor]


def sequences(model: Any, input_ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> SequenceLogProbs:
    """Sum up the log-probabilities of each row's labels."""
    logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
    found = token_log_probs(logits, labels)
    return sequence_sums(found.log_probs, found.positions // labels.shape[1], len(labels))


def completions(model: Any, batch: Batch, prefix: str = "") -> SequenceLogProbs:
    """Sum up the log-probabilities of each row's completion."""
    ids = batch[f"{prefix}input_ids"]
    labels = ids.masked_fill(batch[f"{prefix}completion_mask"] == 0, -100)
    return sequences(model, ids, batch[f"{prefix}attention_mask"], labels)


def halves(found: SequenceLogProbs) -> Pairs:
    """Take the first half of the rows as chosen, the second as rejected."""
    numbers = torch.arange(len(found.sums))
    return Pairs.of(found, numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :])


def named_pairs(model: Any, batch: Batch) -> Pairs:
    """Read the batches of the older trainers, which keep chosen and rejected apart."""
    chosen, rejected = (
        sequences(model, *(batch[f"{name}_{what}"] for what in ("input_ids", "attention_mask", "labels")))
        for name in ("chosen", "rejected")
    )
    return Pairs(chosen.sums, rejected.sums, chosen.lengths, rejected.lengths)


def our_sft(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """Take the mean loss over learned tokens."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    found = next_token_losses(logits, batch["labels"])
    return found.loss_sum / len(found.targets)


def our_reward(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """Take the pairwise loss of the scores at the last real tokens."""
    chosen, rejected = model(**batch).logits[:, 0].chunk(2)
    sums = reward_sums(chosen, rejected)
    return sums.loss / sums.weight


def our_dpo(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """Take DPO's loss."""
    return dpo(halves(completions(model, batch)), halves(completions(reference, batch)), 0.1).losses.mean()


def our_ipo(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """Take IPO's loss of means over tokens, which is TRL's variant of it."""
    pairs = [halves(completions(each, batch)).per_token() for each in (model, reference)]
    return dpo(pairs[0], pairs[1], 0.1, "ipo").losses.mean()


def our_kto(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """Take KTO's loss, the reference point from TRL's mismatched pairs."""
    apart = completions(model, batch, "KL_").sums - completions(reference, batch, "KL_").sums
    point = kto_reference_point(apart.sum(), torch.tensor(len(apart)))
    sums = [completions(each, batch).sums for each in (model, reference)]
    return kto(sums[0], sums[1], batch["label"].bool(), point, 0.1).losses.mean()


def our_orpo(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """Take the odds ratio of ours and, as TRL does, the loss on prompt and chosen answer, a mean over all tokens."""
    ids, mask = batch["chosen_input_ids"], batch["chosen_attention_mask"]
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    labels = ids.masked_fill(mask == 0, -100)
    nll = next_token_loss_sum(logits, labels) / (labels[:, 1:] != -100).sum()
    return nll + 0.1 * halves_of_odds(named_pairs(model, batch))


def halves_of_odds(pairs: Pairs) -> torch.Tensor:
    """Take the mean of ORPO's odds-ratio term, with gradient: the whole loss less its likelihood."""
    return (orpo(pairs, 1.0).losses + pairs.per_token().chosen).mean()


def our_simpo(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """Take SimPO's loss."""
    return simpo(named_pairs(model, batch), 2.0, 0.5).losses.mean()


CASES = {
    "sft": Case("SFT", {}, ANSWERS, our_sft),
    "reward": Case("Reward", {}, PAIRS, our_reward),
    "dpo sigmoid": Case("DPO", {"beta": 0.1}, PAIRS, our_dpo),
    "dpo ipo": Case("DPO", {"beta": 0.1, "loss_type": ["ipo"]}, PAIRS, our_ipo),
    "kto": Case("KTO", {"beta": 0.1}, SINGLES, our_kto),
    "orpo": Case("experimental.orpo:ORPO", {"beta": 0.1}, PAIRS, our_orpo),
    "simpo": Case(
        "experimental.cpo:CPO",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
        PAIRS,
        our_simpo,
    ),
}


def main(settings: Settings) -> int:
    """Compare every case and write the result."""
    try:
        trl = import_module("trl")
    except ImportError as error:
        raise InputError("TRL is not installed", remedy="put it on PYTHONPATH as the script's head says") from error
    found = {}
    with tempfile.TemporaryDirectory() as work:
        for name, case in CASES.items():
            found[name] = compare(case, Path(work))
            cli.say(f"{name}: {found[name]}")
    result = {"trl": trl.__version__, "machine": describe_machine(), "losses": found}
    with whole_file(settings.output_file, overwrite=settings.overwrite) as file:
        file.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def compare(case: Case, work: Path) -> dict[str, float]:
    """Take both losses and both gradients of one batch, in fp32."""
    from datasets import Dataset

    module, _, trainer_name = case.trainer.rpartition(":")
    source = import_module(f"trl.{module}" if module else "trl")
    model, reference = (build_model(seed, scores=case.trainer == "Reward") for seed in (0, 1))
    config = getattr(source, f"{trainer_name}Config")(
        output_dir=str(work),
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        remove_unused_columns=False,
        **case.options,
    )
    with_reference = {"ref_model": reference} if trainer_name in {"DPO", "KTO"} else {}
    trainer = getattr(source, f"{trainer_name}Trainer")(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(case.rows),
        processing_class=build_tokenizer(),
        **with_reference,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    theirs, their_gradient = differentiate(model, lambda: trainer.compute_loss(trainer.model, dict(batch)))
    ours, our_gradient = differentiate(model, lambda: case.ours(model, reference, batch))
    return {
        "trl": theirs,
        "ours": ours,
        "relative_difference": abs(ours - theirs) / abs(theirs),
        "largest_gradient": float(their_gradient.abs().max()),
        "largest_gradient_difference": float((our_gradient - their_gradient).abs().max()),
    }


def differentiate(model: Any, loss_of: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Return a loss and its gradient with respect to every parameter that has one."""
    model.zero_grad()
    loss = loss_of()
    loss.backward()
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def build_model(seed: int, scores: bool) -> Any:
    """Make a tiny Llama whose weights are large enough for its distributions to differ."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
        num_labels=1 if scores else 2,
    )
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(config) if scores else LlamaForCausalLM(config)


def build_tokenizer() -> Any:
    """Make a tokenizer of single words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate([*SPECIAL.values(), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(numbers, SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


if __name__ == "__main__":
    cli.run(Settings, main)
