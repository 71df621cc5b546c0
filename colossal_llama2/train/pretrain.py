"""`train.py`: continued pretraining, from the flags to the finished model."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from colossal_llama2 import cli
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.loader import GlobalBatches, LoaderSettings
from colossal_llama2.engine import ranks
from colossal_llama2.engine.adapters import Adapter, attach_adapter
from colossal_llama2.engine.memory_plan import MemoryPlan, describe_actual, describe_predicted
from colossal_llama2.engine.parallel_plan import check_model
from colossal_llama2.engine.precision import DTYPES
from colossal_llama2.engine.running_state import RunIdentity, RunningState, read_running_state, refuse_misfit
from colossal_llama2.engine.session import AdamSettings, Session
from colossal_llama2.errors import InputError
from colossal_llama2.model.belonging import check_belongs
from colossal_llama2.model.embedding_names import build_without_memory
from colossal_llama2.model.freezing import check_base_rows_kept, decay_groups, describe_trained
from colossal_llama2.model.merging import merge_adapter
from colossal_llama2.model.pretrained import (
    check_attention,
    check_same_shape,
    choose_attention,
    load_for_training,
    recompute_activations,
    stored_dtype,
)
from colossal_llama2.outputs import whole_directory
from colossal_llama2.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from colossal_llama2.train.checkpoints import (
    MODELING,
    Checkpoints,
    Position,
    SavePolicy,
    StartingPoint,
    find_starting_point,
)
from colossal_llama2.train.flops import peak_flops, step_flops
from colossal_llama2.train.folders import check_folders, prepare_folders
from colossal_llama2.train.loop import PRETRAINING, Run, train
from colossal_llama2.train.plan import predict_run
from colossal_llama2.train.run_log import RunLog
from colossal_llama2.train.schedule import cosine_multiplier, default_warmup_steps
from colossal_llama2.train.settings import TrainSettings, check_settings
from colossal_llama2.train.stopping import EXIT_STOPPED, StopRequest
from colossal_llama2.train.trained import Trained, check_adapter, mark_trained, plan_trained
from colossal_llama2.train.watching import build_watches, rows_to_watch


def main(settings: TrainSettings) -> int:
    """Train; return 0, or 143 when a SIGTERM ended the run after a checkpoint."""
    check_settings(settings)
    start = find_starting_point(settings.model.pretrained, settings.model.load_checkpoint, settings.output.save_dir)
    corpus = open_inputs(settings, start)
    trained = plan_trained(settings, start)
    if settings.output.new_rows_interval:
        rows_to_watch(settings, trained)  # now: a mistake in it must not cost a run
    identity = _identity(settings, corpus, trained)
    state = _checked_state(settings, start, identity)
    check_adapter(trained, settings, start)
    dtype = stored_dtype(settings.model.pretrained)  # now: a mistake in it must not cost a run

    ranks.launch(settings.optimizer.seed)
    try:
        check_division(settings, start)
        if ranks.is_first():
            prepare_folders(settings, start)
        ranks.barrier()
        run, position = build(settings, start, trained, corpus, identity, state)
        return _train_and_save(settings, run, position, dtype)
    finally:
        ranks.close()


def check_division(settings: TrainSettings, start: StartingPoint) -> None:
    """Refuse a model that cannot be trained as asked on this many ranks, before an earlier run is discarded for it.

    Raises:
        InputError: the degrees do not divide the ranks or the model, or its layers would mix documents.
    """
    settings.plugin_settings.mesh(ranks.rank(), ranks.world_size())
    model = build_without_memory(start.weights_dir)
    check_attention(model, start.weights_dir)
    if settings.parallel.plugin == "3d":
        check_model(settings.plugin_settings, model)


def _train_and_save(settings: TrainSettings, run: Run, position: Position, dtype: torch.dtype) -> int:
    plan = predict_run(settings, ranks.world_size(), run.batches.corpus.max_length)
    _announce(settings, run, position, plan)
    try:
        position, complete = train(run, position)
        _say_memory(plan)
        if complete:  # a SIGTERM from here on waits: the model is as far as the run was to go
            _save_finished(settings, run, dtype)
            return 0
    finally:
        run.stop.close()
        if run.log is not None:
            run.log.close()
    cli.say(f"stopped by SIGTERM at step {position.step}; continue with --load_checkpoint {run.checkpoints.last}")
    return EXIT_STOPPED


def _save_finished(settings: TrainSettings, run: Run, dtype: torch.dtype) -> None:
    saved = run.checkpoints.save_model(dtype)
    if run.session.adapter is None:
        cli.say(f"model saved to {saved}")
        return
    cli.say(f"adapter saved to {saved}")
    if settings.lora.lora_merge and ranks.is_first():  # the others need not wait, and would only for half an hour
        model = settings.output.save_dir / MODELING
        with whole_directory(model, overwrite=True) as work:
            merge_adapter(settings.model.pretrained, saved, work)
        cli.say(f"merged model saved to {model}")


def open_inputs(settings: TrainSettings, start: StartingPoint) -> PreparedCorpus:
    """Open the corpus and check that model, tokenizer and corpus belong together.

    Raises:
        InputError: one of them is missing, or they do not.
    """
    check_belongs(settings.model.pretrained)
    if start.weights_dir != settings.model.pretrained:
        check_belongs(start.weights_dir)
    corpus = PreparedCorpus.open(settings.data.dataset)
    fingerprint = tokenizer_fingerprint(start.weights_dir)
    if fingerprint != corpus.tokenizer_fingerprint:
        raise InputError(
            "the corpus was prepared with another tokenizer than the model's",
            path=settings.data.dataset[0],
            remedy=f"prepare it with --tokenizer_dir {start.weights_dir}",
        )
    if fingerprint != tokenizer_fingerprint(settings.model.pretrained):
        raise InputError(
            "--load_checkpoint and --pretrained have different tokenizers",
            path=start.weights_dir,
            remedy="name the model folder that the checkpoint was trained from",
        )
    check_same_shape(settings.model.pretrained, start.weights_dir)
    if corpus.max_length > settings.data.max_length:
        raise InputError(
            f"the corpus has rows of up to {corpus.max_length} tokens and --max_length is {settings.data.max_length}",
            path=settings.data.dataset[0],
            remedy=f"pass --max_length {corpus.max_length}",
        )
    return corpus


def build(
    settings: TrainSettings,
    start: StartingPoint,
    trained: Trained,
    corpus: PreparedCorpus,
    identity: RunIdentity,
    state: RunningState | None,
) -> tuple[Run, Position]:
    """Load the model, boost it, and put a checkpoint's state into it if there is one."""
    model = load_for_training(start.weights_dir, settings.parallel.mixed_precision, settings.model.use_flash_attn)
    undecayed = mark_trained(model, trained, start, settings.optimizer.seed)
    if settings.model.use_grad_checkpoint:
        recompute_activations(model)
    flops = step_flops(model)
    cli.say(f"trained: {trained.name}; {describe_trained(model)}")
    batches = GlobalBatches(corpus, _loader_settings(settings, corpus))
    total_steps = _total_steps(settings, batches, state)
    session = _boost(settings, model, total_steps, undecayed)
    if trained.new_rows is not None:
        check_base_rows_kept(session.model.unwrap())
    if trained.lora is not None:
        attach_adapter(session, Adapter.of(trained.lora, settings.model.pretrained))
        session.frozen_weights.clear()  # the base is not saved
    output = settings.output
    policy = SavePolicy(output.save_dir, settings.model.pretrained, output.keep_checkpoints, output.async_save)
    watches = build_watches(settings, trained, session, total_steps)
    checkpoints = Checkpoints(session, policy, identity, batches.rows_per_step, watches.as_state)
    per_rank, _ = peak_flops(ranks.device(), DTYPES[settings.parallel.mixed_precision])
    # everything that draws numbers is behind us: from here on the random state is dropout's, or the checkpoint's
    ranks.seed_dropout(settings.optimizer.seed, data_rank=session.mesh.data_rank)
    position = Position()
    if state is not None and start.checkpoint_dir is not None:
        position = checkpoints.resume(state, start.checkpoint_dir)
        watches.load_state(state.watched)
    run = Run(
        session=session,
        batches=batches,
        objective=watches.objective(PRETRAINING),
        checkpoints=checkpoints,
        total_steps=total_steps,
        num_epochs=settings.data.num_epochs,
        save_interval=settings.output.save_interval,
        stop=StopRequest(),
        log=_open_log(settings, position.step, total_steps),
        flops=flops,
        peak_flops=per_rank * ranks.world_size(),
        new_rows=watches.new_rows,
        flatness=watches.flatness,
    )
    return run, position


def _loader_settings(settings: TrainSettings, corpus: PreparedCorpus) -> LoaderSettings:
    tokenizer = load_tokenizer(settings.model.pretrained)
    mesh = settings.plugin_settings.mesh(ranks.rank(), ranks.world_size())
    parallel = settings.parallel
    # Pipeline stages exchange tensors of one size, and a sequence is divided evenly.
    fixed = parallel.pp > 1 or parallel.sp > 1
    return LoaderSettings(
        rank=mesh.data_rank,
        world_size=mesh.data_size,
        micro_batch_size=settings.data.micro_batch_size,
        accumulation_steps=settings.data.accumulation_steps,
        seed=settings.optimizer.seed,
        pad_token_id=tokenizer.pad_token_id or 0,
        length=-(-corpus.max_length // parallel.sp) * parallel.sp if fixed else None,
    )


def _total_steps(settings: TrainSettings, batches: GlobalBatches, state: RunningState | None) -> int:
    """Count the steps done and those that the rows left need: not epochs times steps once the global batch changed."""
    if state is None:
        steps = batches.steps_per_epoch * settings.data.num_epochs
    else:
        left_in_epoch = -(-(batches.corpus.num_rows - state.rows_consumed) // batches.rows_per_step)
        epochs_after = settings.data.num_epochs - state.epoch - 1
        steps = state.step + (left_in_epoch + epochs_after * batches.steps_per_epoch if epochs_after >= 0 else 0)
    return min(steps, settings.data.max_steps or steps)


def _boost(settings: TrainSettings, model: nn.Module, total_steps: int, undecayed: list[nn.Parameter]) -> Session:
    options = settings.optimizer
    warmup = default_warmup_steps(total_steps) if options.warmup_steps is None else options.warmup_steps
    return Session(
        settings.plugin_settings,
        model,
        decay_groups(model, options.weight_decay, options.decay_all_params, never=undecayed),
        AdamSettings(options.lr, options.adam_beta1, options.adam_beta2, options.adam_eps),
        partial(cosine_multiplier, total_steps=total_steps, warmup_steps=warmup),
        accumulates=settings.data.accumulation_steps > 1,
    )


def _identity(settings: TrainSettings, corpus: PreparedCorpus, trained: Trained) -> RunIdentity:
    return RunIdentity(
        tokenizer_fingerprint=corpus.tokenizer_fingerprint,
        corpus_fingerprint=corpus.fingerprint,
        # with --decay_all_params the optimizer numbers its parameters in another order
        trained_parameters=f"{trained.name}, all decaying" if settings.optimizer.decay_all_params else trained.name,
        seed=settings.optimizer.seed,
    )


def _checked_state(settings: TrainSettings, start: StartingPoint, identity: RunIdentity) -> RunningState | None:
    """Read what a checkpoint says of itself, and refuse it, or an output in the way, before anything is written."""
    check_folders(settings, start)
    if start.checkpoint_dir is None:
        return None
    state = read_running_state(start.checkpoint_dir)
    refuse_misfit(state, identity, start.checkpoint_dir)
    return state


def _say_memory(plan: MemoryPlan | str) -> None:
    """Set the peak beside what `tools/plan.py` predicts; a CPU's resident set is another thing than what it counts."""
    if torch.cuda.is_available() and not isinstance(plan, str):
        cli.say(describe_actual(plan, int(ranks.largest_over_ranks(ranks.peak_memory()))))


def _open_log(settings: TrainSettings, first_step: int, total_steps: int) -> RunLog | None:
    if not ranks.is_first():
        return None
    return RunLog(settings.run_dir, first_step, total_steps, settings.output.log_interval)


def _announce(settings: TrainSettings, run: Run, position: Position, plan: MemoryPlan | str) -> None:
    corpus = run.batches.corpus
    _, attention = choose_attention(settings.parallel.mixed_precision, settings.model.use_flash_attn)
    cli.say(
        f"{settings.parallel.plugin}, {settings.parallel.mixed_precision}, {ranks.world_size()} ranks on "
        f"{ranks.device().type}; {attention}"
    )
    cli.say(f"memory: {plan if isinstance(plan, str) else describe_predicted(plan)}")
    cli.say(
        f"{corpus.num_rows} rows in {len(corpus.bucket_sizes)} buckets, {run.batches.rows_per_step} rows a step, "
        + (
            f"steps {position.step + 1} to {run.total_steps}"
            if position.step < run.total_steps
            else "no step left to do"
        )
    )
