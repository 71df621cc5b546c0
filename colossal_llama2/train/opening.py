"""What a run is made of, opened and checked before any process group stands and anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.engine import ranks
from colossal_llama2.engine.parallel_plan import check_model
from colossal_llama2.engine.running_state import RunIdentity, RunningState, read_running_state, refuse_misfit
from colossal_llama2.errors import InputError
from colossal_llama2.model.belonging import check_belongs
from colossal_llama2.model.embedding_names import build_without_memory
from colossal_llama2.model.pretrained import check_attention, check_same_shape, stored_dtype
from colossal_llama2.model.quantized import refuse_quantized
from colossal_llama2.model.scalar_head import is_scorer
from colossal_llama2.tokenizer.loading import tokenizer_fingerprint
from colossal_llama2.train.checkpoints import StartingPoint, find_starting_point
from colossal_llama2.train.folders import check_folders
from colossal_llama2.train.recomputation import check_layers
from colossal_llama2.train.settings import StageSettings
from colossal_llama2.train.settings_checks import check_settings
from colossal_llama2.train.stage import Stage
from colossal_llama2.train.trained import Trained, check_adapter, plan_trained
from colossal_llama2.train.watching import rows_to_watch


@dataclass(frozen=True)
class Opened:
    """A run as it is known before it is built.

    Attributes:
        start: where the weights come from.
        data: what is learned from.
        evaluated: what the loss is measured on, if anything.
        trained: what learns.
        identity: what a checkpoint must agree with.
        state: of the checkpoint that is resumed, if any.
        dtype: what the finished model is stored in.
        changed_files: texts of small files of its folder that are not those of --pretrained.
    """

    start: StartingPoint
    data: PreparedCorpus
    evaluated: PreparedCorpus | None
    trained: Trained
    identity: RunIdentity
    state: RunningState | None
    dtype: torch.dtype
    changed_files: dict[str, str]


def open_run(stage: Stage) -> Opened:
    """Open everything a run reads, and refuse what cannot work or does not belong together.

    Raises:
        InputError: a flag, a folder, or two that do not fit.
    """
    settings = stage.settings
    check_settings(settings)
    stage.check()
    start = find_starting_point(settings.model.pretrained, settings.model.load_checkpoint, settings.output.save_dir)
    data, evaluated = open_inputs(stage, start)
    trained = plan_trained(settings, start, stage.scores)
    if settings.output.new_rows_interval and stage.predicts_tokens:
        rows_to_watch(settings, trained)  # now: a mistake in it must not cost a run
    identity = identity_of(stage, data, trained)
    state = _checked_state(settings, start, identity)
    check_adapter(trained, settings, start)
    dtype = stored_dtype(settings.model.pretrained)  # now: a mistake in it must not cost a run
    return Opened(start, data, evaluated, trained, identity, state, dtype, stage.changed_files(data))


def open_inputs(stage: Stage, start: StartingPoint) -> tuple[PreparedCorpus, PreparedCorpus | None]:
    """Open the data and what is evaluated on, and check that they, model and tokenizer belong together.

    Raises:
        InputError: one of them is missing, or they do not.
    """
    settings = stage.settings
    check_belongs(settings.model.pretrained)
    refuse_quantized(settings.model.pretrained, "cannot be trained")
    if start.weights_dir != settings.model.pretrained:
        check_belongs(start.weights_dir)
    if not stage.scores and is_scorer(start.weights_dir):
        raise InputError(
            "is a model that scores texts, and has no head that predicts tokens",
            path=start.weights_dir,
            remedy="start from the model that it was made of",
        )
    data = stage.open_data(settings.data.dataset)
    fingerprint = tokenizer_fingerprint(start.weights_dir)
    _check_data(settings, data, settings.data.dataset[0], fingerprint, start)
    if fingerprint != tokenizer_fingerprint(settings.model.pretrained):
        raise InputError(
            "--load_checkpoint and --pretrained have different tokenizers",
            path=start.weights_dir,
            remedy="name the model folder that the checkpoint was trained from",
        )
    check_same_shape(settings.model.pretrained, start.weights_dir)
    evaluated = None
    if settings.evaluation.eval_dataset:
        evaluated = stage.open_data(settings.evaluation.eval_dataset)
        _check_data(settings, evaluated, settings.evaluation.eval_dataset[0], fingerprint, start)
    stage.check_together(data, evaluated, start.weights_dir)
    return data, evaluated


def check_division(stage: Stage, start: StartingPoint) -> None:
    """Refuse a model that cannot be trained as asked on this many ranks, before an earlier run is discarded for it.

    Raises:
        InputError: the degrees do not divide the ranks or the model, or its layers would mix documents.
    """
    settings = stage.settings
    settings.plugin_settings.mesh(ranks.rank(), ranks.world_size())
    model = build_without_memory(start.weights_dir, stage.scores)
    check_attention(model, start.weights_dir)
    check_layers(settings.model.checkpoint_layers, model)
    if settings.parallel.plugin == "3d":
        check_model(settings.plugin_settings, model)


def identity_of(stage: Stage, data: PreparedCorpus, trained: Trained) -> RunIdentity:
    """Say what a checkpoint of this run must agree with to be continued."""
    optimizer = stage.settings.optimizer
    return RunIdentity(
        tokenizer_fingerprint=data.tokenizer_fingerprint,
        corpus_fingerprint=data.fingerprint,
        # with --decay_all_params the optimizer numbers its parameters in another order
        trained_parameters=f"{trained.name}, all decaying" if optimizer.decay_all_params else trained.name,
        seed=optimizer.seed,
        stage=stage.name,
    )


def _check_data(
    settings: StageSettings, data: PreparedCorpus, path: Path, fingerprint: str, start: StartingPoint
) -> None:
    if fingerprint != data.tokenizer_fingerprint:
        raise InputError(
            "the corpus was prepared with another tokenizer than the model's",
            path=path,
            remedy=f"prepare it with --tokenizer_dir {start.weights_dir}",
        )
    if data.max_length > settings.data.max_length:
        raise InputError(
            f"the corpus has rows of up to {data.max_length} tokens and --max_length is {settings.data.max_length}",
            path=path,
            remedy=f"pass --max_length {data.max_length}",
        )


def _checked_state(settings: StageSettings, start: StartingPoint, identity: RunIdentity) -> RunningState | None:
    """Read what a checkpoint says of itself, and refuse it, or an output in the way, before anything is written."""
    check_folders(settings, start)
    if start.checkpoint_dir is None:
        return None
    state = read_running_state(start.checkpoint_dir)
    refuse_misfit(state, identity, start.checkpoint_dir)
    return state
