"""What a run trains: everything, embeddings, new rows, an adapter; decided from the flags before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.model.adapter_files import check_continues, load_into
from colossal_llama2.model.freezing import embedding_parameters, freeze_all_but_embeddings, keep_base_rows
from colossal_llama2.model.lora import LoraPlan, add_lora, embeddings_learn, plan_lora, with_score_head
from colossal_llama2.tokenizer.expansion import new_tokens
from colossal_llama2.train.checkpoints import StartingPoint
from colossal_llama2.train.settings import StageSettings


@dataclass(frozen=True)
class Trained:
    """What is trained.

    Attributes:
        name: tells one run from another when a checkpoint is resumed.
        embeddings_only: everything but input embedding and output head is frozen.
        new_rows: the only rows of embedding and head that learn, or None for all of them.
        lora: the adapter, if any; the base is then frozen but for the embeddings that it asks for.
    """

    name: str
    embeddings_only: bool = False
    new_rows: range | None = None
    lora: LoraPlan | None = None


def plan_trained(settings: StageSettings, start: StartingPoint, scores: bool = False) -> Trained:
    """Work out from the flags and the model's folder what is trained.

    Args:
        settings: the run's.
        start: where its weights come from.
        scores: the model has a head that scores, which learns in full in any case.

    Raises:
        InputError: new rows were asked for and there are none, an adapter cannot be made or continued as asked.
    """
    options, lora, pretrained = settings.model, settings.lora, settings.model.pretrained
    rows = new_tokens(pretrained) if options.train_new_rows_only else None
    which = "embeddings" if rows is None else f"rows {rows.start} to {rows.stop - 1} of the embeddings"
    if not lora.lora_rank:
        if start.adapter_dir is not None and start.checkpoint_dir is None:
            raise InputError(
                "is an adapter, and --lora_rank is not given",
                path=start.adapter_dir,
                remedy="give its --lora_rank, or merge it with tools/merge_lora.py and pass the result as --pretrained",
            )
        only = options.freeze_non_embeds_params or rows is not None
        return Trained(which if only else "everything", embeddings_only=only, new_rows=rows)
    if start.weights_dir != pretrained and start.checkpoint_dir is None:
        raise InputError(
            "is a whole model, and a LoRA run trains an adapter of --pretrained",
            path=start.weights_dir,
            remedy=f"pass --pretrained {start.weights_dir} and leave --load_checkpoint out",
        )
    plan = plan_lora(
        pretrained,
        lora.lora_rank,
        lora.alpha,
        lora.lora_dropout,
        cli.comma_separated(lora.lora_targets),
        embeddings=rows is not None or embeddings_learn(lora.lora_train_embeddings, pretrained),
    )
    if scores:
        plan = with_score_head(plan, pretrained)
    name = f"LoRA of rank {plan.rank}, alpha {plan.alpha} on {', '.join(plan.targets)}"
    return Trained(f"{name}, and {which}" if plan.embeddings else name, new_rows=rows, lora=plan)


def check_adapter(trained: Trained, settings: StageSettings, start: StartingPoint) -> None:
    """Refuse to go on with an adapter that does not fit this run.

    Raises:
        InputError: see `check_continues`.
    """
    if trained.lora is not None and start.adapter_dir is not None:
        check_continues(start.adapter_dir, trained.lora, settings.model.pretrained)


def mark_trained(model: nn.Module, trained: Trained, start: StartingPoint, seed: int) -> list[nn.Parameter]:
    """Freeze, add and load what is to be; afterwards `requires_grad` says what learns.

    Returns:
        Parameters that must not decay, because base rows of them are to stay as they are.
    """
    if trained.lora is not None:
        add_lora(model, trained.lora, seed)
        if start.adapter_dir is not None:
            load_into(model, start.adapter_dir)
    elif trained.embeddings_only:
        freeze_all_but_embeddings(model)
    if trained.new_rows is None:
        return []
    parameters = embedding_parameters(model)
    for parameter in parameters:
        keep_base_rows(parameter, trained.new_rows)
    return parameters
