"""A PPO run from its settings: models loaded and boosted, and a checkpoint put into them."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from colossal_llama2 import cli
from colossal_llama2.align.experience import Shaping
from colossal_llama2.align.frozen import AdapterOff, FrozenModel
from colossal_llama2.align.judging import Judge
from colossal_llama2.align.kl_control import AdaptiveKl, FixedKl, KlControl
from colossal_llama2.align.ppo_learning import Learner, Learning
from colossal_llama2.align.ppo_opening import OpenedPpo
from colossal_llama2.align.ppo_run import Payment, PpoRun, PpoState
from colossal_llama2.align.ppo_settings import PpoSettings
from colossal_llama2.align.pretraining_rows import PretrainingRows
from colossal_llama2.align.rollouts import Generator, ModuleGenerator, Sampling
from colossal_llama2.align.vllm_rollouts import VllmGenerator
from colossal_llama2.dataset.loader import GlobalBatches, LoaderSettings
from colossal_llama2.engine import ranks
from colossal_llama2.engine.adapters import Adapter, attach_adapter
from colossal_llama2.engine.companions import Companion
from colossal_llama2.engine.precision import DTYPES
from colossal_llama2.engine.session import AdamSettings, Session
from colossal_llama2.model.freezing import check_base_rows_kept, decay_groups, describe_trained
from colossal_llama2.model.pretrained import load_for_training
from colossal_llama2.model.scalar_head import is_scorer, load_scorer, scorer_config
from colossal_llama2.tokenizer.folder import with_chat_template
from colossal_llama2.tokenizer.loading import load_tokenizer
from colossal_llama2.train.checkpoints import CRITIC, Checkpoints, Position, SavePolicy
from colossal_llama2.train.flops import peak_flops, step_flops
from colossal_llama2.train.kernels import choose_kernels
from colossal_llama2.train.recomputation import recompute_as_asked
from colossal_llama2.train.run_log import RunLog
from colossal_llama2.train.schedule import cosine_multiplier, default_warmup_steps
from colossal_llama2.train.stopping import StopRequest
from colossal_llama2.train.trained import mark_trained


def build(settings: PpoSettings, opened: OpenedPpo) -> tuple[PpoRun, Position]:
    """Load the models, boost those that learn, and put a checkpoint's state into them if there is one."""
    total_steps = _total_steps(settings, opened)
    actor, flops = _build_actor(settings, opened, total_steps)
    critic = _build_critic(settings, total_steps)
    actor.companions[CRITIC] = _critic_companion(settings, critic)
    pretraining = _pretraining_rows(settings, opened, actor)
    sampling = Sampling(
        max_new_tokens=settings.rollouts.max_new_tokens,
        temperature=settings.rollouts.temperature,
        end_token_ids=opened.end_token_ids,
        batch_size=settings.rollouts.generation_batch,
    )
    state = PpoState(_kl_control(settings))
    checkpoints = _checkpoints(settings, opened, actor, partial(_as_state, state, critic, pretraining))
    per_rank, _ = peak_flops(ranks.device(), DTYPES[settings.parallel.mixed_precision])
    judge = _build_judge(settings, opened, actor, critic)
    # everything that draws numbers is behind us: from here on the random state is dropout's, or the checkpoint's
    ranks.seed_dropout(settings.optimizer.seed, data_rank=actor.mesh.data_rank)
    position = Position()
    if opened.state is not None and opened.start.checkpoint_dir is not None:
        position = checkpoints.resume(opened.state, opened.start.checkpoint_dir)
        _load_state(opened.state.watched["ppo"], state, critic, pretraining)
    reward, ppo, output = settings.reward, settings.ppo, settings.output
    run = PpoRun(
        prompts=opened.prompts,
        generator=_generator(settings, actor, sampling),
        judge=judge,
        learner=Learner(actor, critic, pretraining, _learning(settings)),
        shaping=Shaping(ppo.kl_estimator, ppo.gamma, ppo.lam, ppo.whiten_advantages),
        payment=Payment(
            reward.reward_model_weight,
            reward.reward_function_weight,
            reward.normalise_reward,
            reward.reward_clip,
            reward.missing_end_penalty,
        ),
        state=state,
        checkpoints=checkpoints,
        total_steps=total_steps,
        rollout_batch=settings.rollouts.rollout_batch,
        critic_warmup=ppo.critic_warmup,
        seed=settings.optimizer.seed,
        save_interval=output.save_interval,
        sample_interval=output.log_interval,
        num_samples=ppo.num_samples,
        stop_on_trouble=ppo.stop_on_trouble,
        stop=StopRequest(),
        log=RunLog(settings.run_dir, position.step, total_steps, output.log_interval) if ranks.is_first() else None,
        flops=flops,
        peak_flops=per_rank * ranks.world_size(),
    )
    return run, position


def _build_actor(settings: PpoSettings, opened: OpenedPpo, total_steps: int) -> tuple[Session, Any]:
    trained = opened.trained
    model = load_for_training(
        opened.start.weights_dir, settings.parallel.mixed_precision, settings.model.use_flash_attn
    )
    undecayed = mark_trained(model, trained, opened.start, settings.optimizer.seed)
    flops = step_flops(model)
    cli.say(f"trained: {trained.name}; {describe_trained(model)}")
    learning_rollouts = total_steps - settings.ppo.critic_warmup
    session = _boost(settings, model, learning_rollouts, settings.optimizer.lr, undecayed)
    if trained.new_rows is not None:
        check_base_rows_kept(session.model.unwrap())
    if trained.lora is not None:
        attach_adapter(session, Adapter.of(trained.lora, settings.model.pretrained, {}))
        session.frozen_weights.clear()  # the base is not saved
    return session, flops


def _build_critic(settings: PpoSettings, total_steps: int) -> Session:
    model = load_scorer(
        settings.critic_dir,
        settings.parallel.mixed_precision,
        settings.model.use_flash_attn,
        settings.optimizer.seed,
    )
    return _boost(settings, model, total_steps, settings.ppo.critic_lr or settings.optimizer.lr, [])


def _boost(settings: PpoSettings, model: nn.Module, rollouts: int, lr: float, undecayed: list[nn.Parameter]) -> Session:
    options, ppo = settings.optimizer, settings.ppo
    recompute_as_asked(settings, model)
    choose_kernels(settings, model)
    updates = max(rollouts, 1) * ppo.ppo_epochs * ppo.ppo_minibatches
    warmup = default_warmup_steps(updates) if options.warmup_steps is None else options.warmup_steps
    return Session(
        settings.plugin_settings,
        model,
        decay_groups(model, options.weight_decay, options.decay_all_params, never=undecayed),
        AdamSettings(lr, options.adam_beta1, options.adam_beta2, options.adam_eps),
        partial(cosine_multiplier, total_steps=updates, warmup_steps=warmup),
        accumulates=True,
    )


def _critic_companion(settings: PpoSettings, critic: Session) -> Companion:
    folder = settings.critic_dir
    return Companion(critic, folder, {} if is_scorer(folder) else {"config.json": scorer_config(folder)})


def _build_judge(settings: PpoSettings, opened: OpenedPpo, actor: Session, critic: Session) -> Judge:
    precision, flash = settings.parallel.mixed_precision, settings.model.use_flash_attn
    freeze = partial(FrozenModel, dtype=DTYPES[precision], offload=settings.ppo.offload_frozen)
    lora = opened.trained.lora
    if lora is not None and not lora.embeddings:
        reference: FrozenModel | AdapterOff = AdapterOff(actor)
        cli.say("the reference is the policy with its adapter off: it costs no memory")
    else:
        reference = freeze(load_for_training(settings.model.pretrained, precision, flash))
    reward_model = settings.reward.reward_model
    return Judge(
        actor=actor,
        critic=critic,
        reference=reference,
        reward_model=None if reward_model is None else freeze(load_scorer(reward_model, precision, flash)),
        reward_function=opened.function,
        tokenizer=load_tokenizer(settings.model.pretrained),
        temperature=settings.rollouts.temperature,
        micro_batch_size=settings.data.micro_batch_size,
    )


def _pretraining_rows(settings: PpoSettings, opened: OpenedPpo, actor: Session) -> PretrainingRows | None:
    if opened.corpus is None:
        return None
    mesh = actor.mesh
    own = settings.ptx.ptx_batch_size // mesh.data_size
    size = max(size for size in range(1, settings.data.micro_batch_size + 1) if own % size == 0)
    loader = LoaderSettings(mesh.data_rank, mesh.data_size, size, own // size, settings.optimizer.seed)
    return PretrainingRows(GlobalBatches(opened.corpus, loader))


def _generator(settings: PpoSettings, actor: Session, sampling: Sampling) -> Generator:
    if settings.rollouts.rollout == "vllm":
        return VllmGenerator(actor, sampling, settings.model.pretrained)
    return ModuleGenerator(actor, sampling)


def _learning(settings: PpoSettings) -> Learning:
    ppo, ptx = settings.ppo, settings.ptx
    return Learning(
        epochs=ppo.ppo_epochs,
        minibatches=ppo.ppo_minibatches,
        micro_batch_size=settings.data.micro_batch_size,
        eps_clip=ppo.eps_clip,
        value_clip=ppo.value_clip or None,
        ptx_coef=ptx.ptx_coef,
        ptx_form=ptx.ptx_form,
        temperature=settings.rollouts.temperature,
        of_answers=ppo.loss_weighting == "answer",
        seed=settings.optimizer.seed,
    )


def _kl_control(settings: PpoSettings) -> KlControl:
    ppo = settings.ppo
    if ppo.adaptive_kl is None:
        return FixedKl(ppo.kl_coef)
    return AdaptiveKl(ppo.kl_coef, ppo.adaptive_kl, ppo.adaptive_kl_horizon)


def _checkpoints(settings: PpoSettings, opened: OpenedPpo, actor: Session, as_state: Any) -> Checkpoints:
    output, pretrained = settings.output, settings.model.pretrained
    changed = with_chat_template(pretrained, opened.prompts.template)
    policy = SavePolicy(output.save_dir, pretrained, output.keep_checkpoints, output.async_save, changed)
    return Checkpoints(actor, policy, opened.identity, settings.rollouts.rollout_batch, lambda: {"ppo": as_state()})


def _as_state(state: PpoState, critic: Session, pretraining: PretrainingRows | None) -> dict[str, Any]:
    return {
        "kl_control": state.kl_control.as_state(),
        "scores": state.scores.as_state(),
        "trouble": state.trouble.as_state(),
        "critic_scaler": critic.scaler_state(),
        "pretraining": None if pretraining is None else pretraining.as_state(),
    }


def _load_state(kept: dict[str, Any], state: PpoState, critic: Session, pretraining: PretrainingRows | None) -> None:
    if kept["kl_control"]:
        state.kl_control.load_state(kept["kl_control"])
    state.scores.load_state(kept["scores"])
    state.trouble.load_state(kept["trouble"])
    critic.load_scaler_state(kept["critic_scaler"])
    if pretraining is not None and kept["pretraining"] is not None:
        pretraining.load_state(kept["pretraining"])


def _total_steps(settings: PpoSettings, opened: OpenedPpo) -> int:
    """Count rollouts: those that are done, and those that the prompts left need."""
    asked, batch = settings.data.num_epochs * opened.prompts.num_prompts, settings.rollouts.rollout_batch
    done = consumed = 0
    if opened.state is not None:
        done = opened.state.step
        consumed = opened.state.epoch * opened.prompts.num_prompts + opened.state.rows_consumed
    steps = done + -(-max(asked - consumed, 0) // batch)
    return min(steps, settings.data.max_steps or steps)
