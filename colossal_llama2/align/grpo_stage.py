"""`train.py --stage grpo`: from the flags to the finished policy."""

from __future__ import annotations

from functools import partial
from typing import Any

from colossal_llama2 import cli
from colossal_llama2.align.experience import Shaping
from colossal_llama2.align.frozen import AdapterOff, FrozenModel
from colossal_llama2.align.grpo import CriticlessJudge, CriticlessLog, CriticlessTrouble, GrpoLearner
from colossal_llama2.align.grpo_opening import OpenedGrpo, open_grpo
from colossal_llama2.align.grpo_settings import GrpoSettings, check_ranks
from colossal_llama2.align.kl_control import FixedKl
from colossal_llama2.align.ppo_learning import Learning
from colossal_llama2.align.ppo_losses import PolicyClip
from colossal_llama2.align.ppo_run import Payment, PpoRun, PpoState
from colossal_llama2.align.ppo_stage import save_policy, train_and_end
from colossal_llama2.align.rollouts import ModuleGenerator, Sampling
from colossal_llama2.engine import ranks
from colossal_llama2.engine.adapters import Adapter, attach_adapter
from colossal_llama2.engine.parallel_plan import check_model
from colossal_llama2.engine.precision import DTYPES
from colossal_llama2.engine.running_state import RunningState
from colossal_llama2.engine.session import AdamSettings, Session
from colossal_llama2.errors import InputError
from colossal_llama2.model.embedding_names import build_without_memory
from colossal_llama2.model.freezing import check_base_rows_kept, decay_groups, describe_trained
from colossal_llama2.model.pretrained import check_attention, load_for_training
from colossal_llama2.model.scalar_head import load_scorer
from colossal_llama2.tokenizer.folder import with_chat_template
from colossal_llama2.tokenizer.loading import load_tokenizer
from colossal_llama2.train.checkpoints import (
    Checkpoints,
    Position,
    SavePolicy,
)
from colossal_llama2.train.flops import peak_flops, step_flops
from colossal_llama2.train.folders import prepare_folders
from colossal_llama2.train.kernels import choose_kernels
from colossal_llama2.train.recomputation import recompute_as_asked
from colossal_llama2.train.schedule import cosine_multiplier, default_warmup_steps
from colossal_llama2.train.stopping import StopRequest
from colossal_llama2.train.trained import mark_trained

_STATE = "grpo"


def main(settings: GrpoSettings) -> int:
    """Let the policy learn; return 0, 143 when a SIGTERM ended the run after a checkpoint, 3 when trouble did."""
    opened = open_grpo(settings)
    ranks.launch(settings.optimizer.seed)
    try:
        _check_division(settings, opened)
        if ranks.is_first():
            prepare_folders(settings, opened.start)
        ranks.barrier()
        run, position = build(settings, opened)
        return _train_and_save(settings, opened, run, position)
    finally:
        ranks.close()


def _check_division(settings: GrpoSettings, opened: OpenedGrpo) -> None:
    """Refuse a model or sizes that cannot be divided as asked, before an earlier run is discarded."""
    mesh = settings.plugin_settings.mesh(ranks.rank(), ranks.world_size())
    check_ranks(settings, mesh.data_size)
    model = build_without_memory(opened.start.weights_dir)
    check_attention(model, opened.start.weights_dir)
    if settings.parallel.plugin == "3d":
        check_model(settings.plugin_settings, model)


def build(settings: GrpoSettings, opened: OpenedGrpo) -> tuple[PpoRun, Position]:
    """Load the models, boost the policy, and put a checkpoint's state into it if there is one."""
    grpo, output, pretrained = settings.grpo, settings.output, settings.model.pretrained
    answers = settings.rollouts.rollout_batch * grpo.group_size
    total_steps = _total_steps(settings, opened, answers)
    actor, flops = _build_actor(settings, opened, total_steps)
    state = PpoState(FixedKl(0.0), trouble=CriticlessTrouble())
    changed = with_chat_template(pretrained, opened.prompts.template)
    policy = SavePolicy(output.save_dir, pretrained, output.keep_checkpoints, output.async_save, changed)
    checkpoints = Checkpoints(actor, policy, opened.identity, answers, lambda: _as_state(state, grpo.group_size))
    per_rank, _ = peak_flops(ranks.device(), DTYPES[settings.parallel.mixed_precision])
    judge = _build_judge(settings, opened, actor)
    # everything that draws numbers is behind us: from here on the random state is dropout's, or the checkpoint's
    ranks.seed_dropout(settings.optimizer.seed, data_rank=actor.mesh.data_rank)
    position = Position()
    if opened.state is not None and opened.start.checkpoint_dir is not None:
        _load_state(opened.state, state, grpo.group_size)
        position = checkpoints.resume(opened.state, opened.start.checkpoint_dir)
    sampling = Sampling(
        max_new_tokens=settings.rollouts.max_new_tokens,
        temperature=settings.rollouts.temperature,
        end_token_ids=opened.end_token_ids,
        batch_size=settings.rollouts.generation_batch,
    )
    reward = settings.reward
    run = PpoRun(
        prompts=opened.prompts,
        generator=ModuleGenerator(actor, sampling),
        judge=judge,
        learner=_learner(settings, actor),
        shaping=Shaping(kl_estimator="k1", gamma=1.0, lam=1.0, whiten=False),
        payment=Payment(
            model_weight=reward.reward_model_weight,
            function_weight=reward.reward_function_weight,
            clip=reward.reward_clip,
            missing_end_penalty=reward.missing_end_penalty,
        ),
        state=state,
        checkpoints=checkpoints,
        total_steps=total_steps,
        rollout_batch=answers,
        critic_warmup=0,
        seed=settings.optimizer.seed,
        save_interval=output.save_interval,
        sample_interval=output.log_interval,
        num_samples=grpo.num_samples,
        stop_on_trouble=grpo.stop_on_trouble,
        stop=StopRequest(),
        log=CriticlessLog(settings.run_dir, position.step, total_steps, output.log_interval)
        if ranks.is_first()
        else None,
        flops=flops,
        peak_flops=per_rank * ranks.world_size(),
    )
    return run, position


def _train_and_save(settings: GrpoSettings, opened: OpenedGrpo, run: PpoRun, position: Position) -> int:
    size = settings.grpo.group_size
    cli.say(
        f"{settings.parallel.plugin}, {settings.parallel.mixed_precision}, {ranks.world_size()} ranks on "
        f"{ranks.device().type}; {run.prompts.num_prompts // size} prompts, "
        f"{settings.rollouts.rollout_batch} a rollout of {size} answers each, "
        f"{run.learner.updates_per_rollout} updates a rollout, rollouts {position.step + 1} to {run.total_steps}"
    )
    return train_and_end(run, position, partial(save_policy, settings, run, opened.dtype))


def _build_actor(settings: GrpoSettings, opened: OpenedGrpo, total_steps: int) -> tuple[Session, Any]:
    trained, options, grpo = opened.trained, settings.optimizer, settings.grpo
    model = load_for_training(
        opened.start.weights_dir, settings.parallel.mixed_precision, settings.model.use_flash_attn
    )
    undecayed = mark_trained(model, trained, opened.start, options.seed)
    recompute_as_asked(settings, model)
    choose_kernels(settings, model)
    flops = step_flops(model)
    cli.say(f"trained: {trained.name}; {describe_trained(model)}")
    updates = max(total_steps, 1) * grpo.grpo_epochs * grpo.grpo_minibatches
    warmup = default_warmup_steps(updates) if options.warmup_steps is None else options.warmup_steps
    session = Session(
        settings.plugin_settings,
        model,
        decay_groups(model, options.weight_decay, options.decay_all_params, never=undecayed),
        AdamSettings(options.lr, options.adam_beta1, options.adam_beta2, options.adam_eps),
        partial(cosine_multiplier, total_steps=updates, warmup_steps=warmup),
        accumulates=True,
    )
    if trained.new_rows is not None:
        check_base_rows_kept(session.model.unwrap())
    if trained.lora is not None:
        attach_adapter(session, Adapter.of(trained.lora, settings.model.pretrained, {}))
        session.frozen_weights.clear()  # the base is not saved
    return session, flops


def _build_judge(settings: GrpoSettings, opened: OpenedGrpo, actor: Session) -> CriticlessJudge:
    precision, flash = settings.parallel.mixed_precision, settings.model.use_flash_attn
    freeze = partial(FrozenModel, dtype=DTYPES[precision], offload=settings.grpo.offload_frozen)
    lora, reward_model = opened.trained.lora, settings.reward.reward_model
    if lora is not None and not lora.embeddings:
        reference: FrozenModel | AdapterOff = AdapterOff(actor)
        cli.say("the reference is the policy with its adapter off: it costs no memory")
    else:
        reference = freeze(load_for_training(settings.model.pretrained, precision, flash))
    return CriticlessJudge(
        actor=actor,
        critic=actor,  # never asked
        reference=reference,
        reward_model=None if reward_model is None else freeze(load_scorer(reward_model, precision, flash)),
        reward_function=opened.function,
        tokenizer=load_tokenizer(settings.model.pretrained),
        temperature=settings.rollouts.temperature,
        micro_batch_size=settings.data.micro_batch_size,
    )


def _learner(settings: GrpoSettings, actor: Session) -> GrpoLearner:
    grpo = settings.grpo
    learning = Learning(
        epochs=grpo.grpo_epochs,
        minibatches=grpo.grpo_minibatches,
        micro_batch_size=settings.data.micro_batch_size,
        eps_clip=grpo.eps_clip,
        value_clip=None,
        ptx_coef=0.0,
        ptx_form="share",
        temperature=settings.rollouts.temperature,
        of_answers=grpo.loss_weighting == "answer",
        seed=settings.optimizer.seed,
    )
    return GrpoLearner(
        actor=actor,
        critic=actor,
        pretraining=None,
        learning=learning,
        group_size=grpo.group_size,
        kl_coef=grpo.kl_coef,
        clip=PolicyClip(grpo.eps_clip, grpo.eps_clip_high),
        divide_by_std=grpo.divide_by_std,
    )


def _as_state(state: PpoState, group_size: int) -> dict[str, Any]:
    return {_STATE: {"trouble": state.trouble.as_state(), "group_size": group_size}}


def _load_state(saved: RunningState, state: PpoState, group_size: int) -> None:
    kept = saved.watched[_STATE]
    if kept["group_size"] != group_size:
        raise InputError(
            f"--group_size is {group_size}, and the checkpoint's position counts answers in groups of "
            f"{kept['group_size']}",
            remedy=f"pass --group_size {kept['group_size']}",
        )
    state.trouble.load_state(kept["trouble"])


def _total_steps(settings: GrpoSettings, opened: OpenedGrpo, answers: int) -> int:
    """Count rollouts: those that are done, and those that the prompts left need."""
    done = consumed = 0
    if opened.state is not None:
        done = opened.state.step
        consumed = opened.state.epoch * opened.prompts.num_prompts + opened.state.rows_consumed
    asked = settings.data.num_epochs * opened.prompts.num_prompts
    steps = done + -(-max(asked - consumed, 0) // answers)
    return min(steps, settings.data.max_steps or steps)
