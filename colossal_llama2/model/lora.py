"""LoRA: small trained matrices beside frozen ones (Hu et al., arXiv 2106.09685), by peft and in peft's format.

The layers are peft's own, put into transformers' model in place: everything else here goes on seeing that model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from colossal_llama2.errors import InputError
from colossal_llama2.model.embedding_names import SCORE_HEAD, build_without_memory
from colossal_llama2.model.freezing import embedding_modules, embedding_parameters
from colossal_llama2.tokenizer.folder import EXPANSION_FILE

KEY_PREFIX: Final = "base_model.model."
_ADAPTER: Final = "default"  # peft's name for the only adapter; it is part of parameter names, not of saved keys


@dataclass(frozen=True)
class LoraPlan:
    """An adapter as it will be made for one model.

    Attributes:
        rank: rows of A and columns of B.
        alpha: the product BA is scaled by ``alpha / rank``.
        dropout: share of a layer's inputs that A does not see in training.
        targets: last parts of the names of the linear layers that get an adapter, sorted.
        embeddings: input embedding and output head are trained in full beside it.
        shapes: what is trained, by its name in peft's file.
        scores: the model has a head that scores, which is trained in full beside the adapter.
    """

    rank: int
    alpha: int
    dropout: float
    targets: tuple[str, ...]
    embeddings: bool
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    scores: bool = False

    def config(self, base_model_dir: Path) -> dict[str, Any]:
        """Return the content of ``adapter_config.json``."""
        content = self.peft_config().to_dict()
        content.update(
            base_model_name_or_path=str(base_model_dir.absolute()),
            inference_mode=True,
            target_modules=list(self.targets),  # peft holds a set, whose order differs from run to run
            task_type="SEQ_CLS" if self.scores else "CAUSAL_LM",
            modules_to_save=[SCORE_HEAD] if self.scores else None,
        )
        return {name: value.value if hasattr(value, "value") else value for name, value in content.items()}

    def peft_config(self) -> Any:
        """Return it as peft's own ``LoraConfig``."""
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(self.targets),
            task_type="CAUSAL_LM",
        )


def plan_lora(
    model_dir: Path, rank: int, alpha: int, dropout: float, targets: Sequence[str], embeddings: bool
) -> LoraPlan:
    """Work out an adapter for a model folder; no weights are read.

    Args:
        model_dir: the base.
        rank: see `LoraPlan`, as `alpha`, `dropout` and `embeddings`.
        alpha: see there.
        dropout: see there.
        targets: names of linear layers, or last parts of them; none for every linear layer but the output head.
        embeddings: see there.

    Raises:
        InputError: a target is not a linear layer of the model.
    """
    model = build_without_memory(model_dir)
    kept = {id(module) for module in embedding_modules(model)}
    linear = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in kept
    }
    offered = sorted({name.rpartition(".")[2] for name in linear})
    for target in targets:
        if not any(_is_target(name, [target]) for name in linear):
            raise InputError(
                f"--lora_targets {target}: {type(model).__name__} has no such linear layer",
                remedy=f"choose among {', '.join(offered)}",
            )
    chosen = tuple(sorted(set(targets))) or tuple(offered)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in linear.items():
        if _is_target(name, chosen):
            shapes[f"{KEY_PREFIX}{name}.lora_A.weight"] = (rank, module.in_features)
            shapes[f"{KEY_PREFIX}{name}.lora_B.weight"] = (module.out_features, rank)
    if embeddings:
        trained = {id(p) for p in embedding_parameters(model)}
        shapes |= {KEY_PREFIX + name: tuple(p.shape) for name, p in model.named_parameters() if id(p) in trained}
    return LoraPlan(rank, alpha, dropout, chosen, embeddings, shapes)


def with_score_head(plan: LoraPlan, model_dir: Path) -> LoraPlan:
    """Return a plan for the same model with a head that scores in the place of the one that predicts tokens."""
    shapes = {name: tuple(p.shape) for name, p in build_without_memory(model_dir, scores=True).named_parameters()}
    head = f"{SCORE_HEAD}.weight"
    kept = {
        key: shape for key, shape in plan.shapes.items() if "lora_" in key or key.removeprefix(KEY_PREFIX) in shapes
    }
    return replace(plan, shapes={**kept, KEY_PREFIX + head: shapes[head]}, scores=True)


def embeddings_learn(choice: str, model_dir: Path) -> bool:
    """Decide what ``yes``, ``no`` or ``auto`` means for a base: auto trains them where the vocabulary was expanded."""
    return choice == "yes" or (choice == "auto" and (model_dir / EXPANSION_FILE).is_file())


def add_lora(model: nn.Module, plan: LoraPlan, seed: int) -> None:
    """Put adapters into a model, in place, and leave nothing trainable but them and, if planned, the embeddings.

    A starts as peft draws it, the same on every rank; B starts at zero, so the model computes what it did before. Both
    are fp32 whatever the base is.

    Args:
        model: transformers' model on the CPU.
        plan: made for it by `plan_lora`.
        seed: decides A, whatever else was drawn before.
    """
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(plan.peft_config(), model, adapter_name=_ADAPTER)
    if plan.embeddings:
        for parameter in embedding_parameters(model):
            parameter.requires_grad_(True)
    if plan.scores:
        model.get_submodule(SCORE_HEAD).requires_grad_(True)
    trained = trained_parameters(model)
    assert {key: tuple(p.shape) for key, p in trained.items()} == dict(plan.shapes), "peft made what was planned"
    for key, parameter in trained.items():
        if "lora_" in key:
            parameter.data = parameter.data.float()


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Map what is trained by its name in peft's file; a tied weight has one name.

    Of a model that is spread over a pipeline these are the parameters that this rank holds.
    """
    return {adapter_key(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_key(name: str) -> str:
    """Return the name in peft's file of a parameter of the model."""
    return KEY_PREFIX + peft_key(name)


def peft_key(name: str) -> str:
    """Return a parameter's name without the adapter's, as peft saves it."""
    return name.replace(f".{_ADAPTER}.", ".")


def _is_target(name: str, targets: Sequence[str]) -> bool:
    """Tell whether peft would put an adapter there."""
    return any(name == target or name.endswith(f".{target}") for target in targets)
