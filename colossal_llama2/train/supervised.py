"""What every stage that learns from a prepared set shares, from the flags to the finished model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import nn

from colossal_llama2 import cli
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.loader import GlobalBatches, LoaderSettings
from colossal_llama2.engine import ranks
from colossal_llama2.engine.adapters import Adapter, attach_adapter
from colossal_llama2.engine.memory_plan import MemoryPlan, describe_actual, describe_predicted
from colossal_llama2.engine.precision import DTYPES
from colossal_llama2.engine.running_state import RunningState
from colossal_llama2.engine.session import AdamSettings, Session
from colossal_llama2.model.freezing import check_base_rows_kept, decay_groups, describe_trained
from colossal_llama2.model.pretrained import choose_attention
from colossal_llama2.outputs import whole_directory
from colossal_llama2.tokenizer.folder import TOKENIZER_FILES
from colossal_llama2.tokenizer.loading import load_tokenizer
from colossal_llama2.train.checkpoints import MODELING, Checkpoints, Position, SavePolicy
from colossal_llama2.train.evaluation import Evaluation
from colossal_llama2.train.flops import peak_flops, step_flops
from colossal_llama2.train.folders import prepare_folders
from colossal_llama2.train.kernels import choose_kernels
from colossal_llama2.train.loop import Run, train
from colossal_llama2.train.opening import Opened, check_division, open_run
from colossal_llama2.train.plan import predict_run
from colossal_llama2.train.profile import profiler_of
from colossal_llama2.train.recomputation import recompute_as_asked
from colossal_llama2.train.run_log import RunLog
from colossal_llama2.train.schedule import cosine_multiplier, default_warmup_steps
from colossal_llama2.train.settings import StageSettings
from colossal_llama2.train.stage import Measured, Stage
from colossal_llama2.train.stopping import EXIT_STOPPED, StopRequest
from colossal_llama2.train.trained import mark_trained
from colossal_llama2.train.watching import Watches, build_watches


def run_stage(stage: Stage) -> int:
    """Train; return 0, or 143 when a SIGTERM ended the run after a checkpoint."""
    opened = open_run(stage)
    settings = stage.settings
    ranks.launch(settings.optimizer.seed)
    try:
        check_division(stage, opened.start)
        if ranks.is_first():
            prepare_folders(settings, opened.start)
        ranks.barrier()
        run, position = build(stage, opened)
        return _train_and_save(settings, run, position, opened)
    finally:
        ranks.close()


def _train_and_save(settings: StageSettings, run: Run, position: Position, opened: Opened) -> int:
    plan: MemoryPlan | str = "not predicted for a model that scores"
    if not run.stage.scores:
        plan = predict_run(settings, ranks.world_size(), run.batches.corpus.max_length)
    _announce(settings, run, position, plan)
    try:
        position, complete = train(run, position)
        _say_memory(plan)
        if complete:  # a SIGTERM from here on waits: the model is as far as the run was to go
            _save_finished(settings, run, opened)
            return 0
    finally:
        run.stop.close()
        if run.profiler is not None:
            run.profiler.close()
        if run.log is not None:
            run.log.close()
    cli.say(f"stopped by SIGTERM at step {position.step}; continue with --load_checkpoint {run.checkpoints.last}")
    return EXIT_STOPPED


def _save_finished(settings: StageSettings, run: Run, opened: Opened) -> None:
    saved = run.checkpoints.save_model(opened.dtype)
    if run.session.adapter is None:
        cli.say(f"model saved to {saved}")
        return
    cli.say(f"adapter saved to {saved}")
    if settings.lora.lora_merge and ranks.is_first():  # the others need not wait, and would only for half an hour
        model = settings.output.save_dir / MODELING
        with whole_directory(model, overwrite=True) as work:
            run.stage.merge(saved, work)
            for name, text in opened.changed_files.items():
                if name in TOKENIZER_FILES:
                    (work / name).write_text(text, encoding="utf-8")
        cli.say(f"merged model saved to {model}")


def build(stage: Stage, opened: Opened) -> tuple[Run, Position]:
    """Load the model, boost it, and put a checkpoint's state into it if there is one."""
    settings, trained = stage.settings, opened.trained
    model = stage.load_model(opened.start.weights_dir)
    undecayed = mark_trained(model, trained, opened.start, settings.optimizer.seed)
    recompute_as_asked(settings, model, None if stage.scores else opened.data.max_length)
    choose_kernels(settings, model)
    flops = step_flops(model)
    cli.say(f"trained: {trained.name}; {describe_trained(model)}")
    loader = _loader_settings(settings, opened)
    batches = stage.batches(opened.data, loader)
    total_steps = _total_steps(settings, batches, opened.state)
    session = _boost(settings, model, total_steps, undecayed)
    if stage.defers_head:
        session.defer_head(settings.model.fused_kernels == "auto")
    if trained.new_rows is not None:
        check_base_rows_kept(session.model.unwrap())
    if trained.lora is not None:
        attach_adapter(session, Adapter.of(trained.lora, settings.model.pretrained, opened.changed_files))
        session.frozen_weights.clear()  # the base is not saved
    stage.begin(session)
    watches = build_watches(settings, trained, session, total_steps) if stage.predicts_tokens else Watches()
    checkpoints = _checkpoints(stage, opened, session, batches, watches)
    per_rank, _ = peak_flops(ranks.device(), DTYPES[settings.parallel.mixed_precision])
    # everything that draws numbers is behind us: from here on the random state is dropout's, or the checkpoint's
    ranks.seed_dropout(settings.optimizer.seed, data_rank=session.mesh.data_rank)
    position = Position()
    if opened.state is not None and opened.start.checkpoint_dir is not None:
        position = checkpoints.resume(opened.state, opened.start.checkpoint_dir)
        watches.load_state(opened.state.watched)
    measured = Measured(stage)
    run = Run(
        session=session,
        stage=stage,
        measured=measured,
        batches=batches,
        objective=watches.objective(measured.objective),
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
        evaluation=_evaluation(stage, session, opened.evaluated, loader),
        # a stage that may end by its loss ends where it would without: the figures are read at once
        reads_late=ranks.device().type == "cuda" and watches.flatness is None,
        profiler=profiler_of(settings, position.step, total_steps),
    )
    return run, position


def _checkpoints(
    stage: Stage, opened: Opened, session: Session, batches: GlobalBatches, watches: Watches
) -> Checkpoints:
    settings, output = stage.settings, stage.settings.output
    policy = SavePolicy(
        save_dir=output.save_dir,
        model_files_dir=settings.model.pretrained,
        keep=output.keep_checkpoints,
        in_background=output.async_save,
        changed_files=opened.changed_files,
    )
    return Checkpoints(
        session, policy, opened.identity, batches.rows_per_step, lambda: {**watches.as_state(), **stage.as_state()}
    )


def _evaluation(
    stage: Stage, session: Session, evaluated: PreparedCorpus | None, loader: LoaderSettings
) -> Evaluation | None:
    if evaluated is None:
        return None
    steps = max(1, stage.settings.parallel.pp)  # a pipeline wants no fewer micro-batches than it has stages
    batches = stage.batches(evaluated, replace(loader, accumulation_steps=steps, seed=0))
    return Evaluation(session, stage, batches, stage.settings.evaluation.eval_interval)


def _loader_settings(settings: StageSettings, opened: Opened) -> LoaderSettings:
    tokenizer = load_tokenizer(settings.model.pretrained)
    mesh = settings.plugin_settings.mesh(ranks.rank(), ranks.world_size())
    parallel = settings.parallel
    longest = max(data.max_length for data in (opened.data, opened.evaluated) if data is not None)
    # Pipeline stages exchange tensors of one size, and a sequence is divided evenly.
    fixed = parallel.pp > 1 or parallel.sp > 1
    return LoaderSettings(
        rank=mesh.data_rank,
        world_size=mesh.data_size,
        micro_batch_size=settings.data.micro_batch_size,
        accumulation_steps=settings.data.accumulation_steps,
        seed=settings.optimizer.seed,
        pad_token_id=tokenizer.pad_token_id or 0,
        length=-(-longest // parallel.sp) * parallel.sp if fixed else None,
    )


def _total_steps(settings: StageSettings, batches: GlobalBatches, state: RunningState | None) -> int:
    """Count the steps done and those that the rows left need: not epochs times steps once the global batch changed."""
    if state is None:
        steps = batches.steps_per_epoch * settings.data.num_epochs
    else:
        left_in_epoch = -(-(batches.corpus.num_rows - state.rows_consumed) // batches.rows_per_step)
        epochs_after = settings.data.num_epochs - state.epoch - 1
        steps = state.step + (left_in_epoch + epochs_after * batches.steps_per_epoch if epochs_after >= 0 else 0)
    return min(steps, settings.data.max_steps or steps)


def _boost(settings: StageSettings, model: nn.Module, total_steps: int, undecayed: list[nn.Parameter]) -> Session:
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


def _say_memory(plan: MemoryPlan | str) -> None:
    """Set the peak beside what `tools/plan.py` predicts; a CPU's resident set is another thing than what it counts."""
    if torch.cuda.is_available() and not isinstance(plan, str):
        cli.say(describe_actual(plan, int(ranks.largest_over_ranks(ranks.peak_memory()))))


def _open_log(settings: StageSettings, first_step: int, total_steps: int) -> RunLog | None:
    if not ranks.is_first():
        return None
    return RunLog(settings.run_dir, first_step, total_steps, settings.output.log_interval)


def _announce(settings: StageSettings, run: Run, position: Position, plan: MemoryPlan | str) -> None:
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
