"""What cannot work is refused by the flags alone, before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import fields

from colossal_llama2.engine.plugins import check_plugin
from colossal_llama2.errors import InputError
from colossal_llama2.model.compiled_layers import check_compile
from colossal_llama2.train.recomputation import check_recomputation
from colossal_llama2.train.settings import LoraOptions, ParallelOptions, StageSettings


def check_settings(settings: StageSettings) -> None:
    """Refuse numbers and combinations that cannot work, before anything is loaded.

    Raises:
        InputError: naming the flag.
    """
    data, optimizer, output = settings.data, settings.optimizer, settings.output
    least = {
        "num_epochs": (data.num_epochs, 1),
        "micro_batch_size": (data.micro_batch_size, 1),
        "accumulation_steps": (data.accumulation_steps, 1),
        "max_length": (data.max_length, 2),
        "save_interval": (output.save_interval, 0),
        "keep_checkpoints": (output.keep_checkpoints, 0),
        "log_interval": (output.log_interval, 1),
        "profile": (output.profile, 0),
        "new_rows_interval": (output.new_rows_interval or 0, 0),
        "eval_interval": (settings.evaluation.eval_interval, 0),
        "max_steps": (1 if data.max_steps is None else data.max_steps, 1),
        "warmup_steps": (optimizer.warmup_steps or 0, 0),
        "weight_decay": (optimizer.weight_decay, 0),
        "gradient_clipping": (optimizer.gradient_clipping, 0),
        "seed": (optimizer.seed, 0),
    }
    for name, (value, smallest) in least.items():
        if not smallest <= value < math.inf:
            raise InputError(f"--{name} is {value}", remedy=f"give at least {smallest}")
    for name, number in (("lr", optimizer.lr), ("adam_eps", optimizer.adam_eps)):
        if not 0 < number < math.inf:
            raise InputError(f"--{name} is {number}", remedy="give a positive number")
    for name, beta in (("adam_beta1", optimizer.adam_beta1), ("adam_beta2", optimizer.adam_beta2)):
        if not 0 <= beta < 1:
            raise InputError(f"--{name} is {beta}", remedy="give a number from 0 to below 1")
    if not data.dataset:
        raise InputError("--dataset names no folder", remedy="give at least one prepared corpus")
    if settings.evaluation.eval_interval and not settings.evaluation.eval_dataset:
        raise InputError("--eval_interval without --eval_dataset", remedy="name a set to evaluate on, or leave it out")
    check_recomputation(settings.model)
    check_plugin(settings.plugin_settings)
    if settings.model.compile:
        check_compile(settings.parallel.plugin)
    _check_pipeline(data.accumulation_steps, settings.parallel)
    _check_trained(settings)


def _check_trained(settings: StageSettings) -> None:
    model, lora, plugin = settings.model, settings.lora, settings.parallel.plugin
    embeddings_only = (model.freeze_non_embeds_params or model.train_new_rows_only) and not lora.lora_rank
    if model.stop_when_flat and not embeddings_only:
        raise InputError(
            "--stop_when_flat ends a stage that trains the embeddings alone, and this one trains more",
            remedy="pass --freeze_non_embeds_params or --train_new_rows_only without --lora_rank, or leave it out",
        )
    if settings.plugin_settings.float8 != "no" and (embeddings_only or lora.lora_rank):
        raise InputError(
            "--float8 speeds up decoder layers that are trained, and this run trains none", remedy="leave it out"
        )
    if model.train_new_rows_only and settings.optimizer.decay_all_params:
        raise InputError(
            "--decay_all_params would pull at the rows that --train_new_rows_only keeps", remedy="leave one out"
        )
    if lora.lora_rank == 0:
        unused = [f.name for f in fields(LoraOptions) if getattr(lora, f.name) != f.default]
        if unused:
            raise InputError(f"--{unused[0]} without --lora_rank", remedy="pass --lora_rank 16, say, or leave it out")
        return
    if plugin in ("gemini", "gemini_auto"):
        raise InputError(
            f"--lora_rank with --plugin {plugin}: ColossalAI's Gemini does not support LoRA",
            remedy="pass --plugin zero2, or zero2_cpu to keep what the optimizer holds in host memory",
        )
    if model.freeze_non_embeds_params:
        raise InputError(
            "--lora_rank with --freeze_non_embeds_params, which would freeze the adapter",
            remedy="leave one out; embeddings learn beside an adapter with --lora_train_embeddings yes",
        )
    if model.train_new_rows_only and lora.lora_train_embeddings == "no":
        raise InputError("--train_new_rows_only with --lora_train_embeddings no", remedy="leave one out")
    if lora.lora_rank < 0 or lora.alpha < 1:
        raise InputError(
            f"--lora_rank {lora.lora_rank} with --lora_alpha {lora.alpha}", remedy="give numbers of 1 or more"
        )
    if not 0 <= lora.lora_dropout < 1:
        raise InputError(f"--lora_dropout is {lora.lora_dropout}", remedy="give a number from 0 to below 1")


def _check_pipeline(accumulation_steps: int, parallel: ParallelOptions) -> None:
    if accumulation_steps < parallel.pp:
        raise InputError(
            f"--accumulation_steps {accumulation_steps} cannot fill a pipeline of --pp {parallel.pp} stages",
            remedy=f"pass at least {parallel.pp}; several times as many keep the stages busier",
        )
    if parallel.pp_chunks > 1 and accumulation_steps % parallel.pp:
        raise InputError(
            f"--accumulation_steps {accumulation_steps} is no multiple of --pp {parallel.pp}, which interleaving needs",
            remedy=f"pass {-(-accumulation_steps // parallel.pp) * parallel.pp}",
        )
