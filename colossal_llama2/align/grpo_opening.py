"""What a GRPO run reads, opened and checked before any process group stands and anything is written."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from colossal_llama2.align.grpo import GroupedPrompts
from colossal_llama2.align.grpo_settings import GrpoSettings, check_grpo
from colossal_llama2.align.ppo_opening import check_scorers, end_tokens, open_prompts, refuse_other_start
from colossal_llama2.align.reward_function import RewardFunction, load_reward_function
from colossal_llama2.engine.running_state import RunIdentity, RunningState, read_running_state, refuse_misfit
from colossal_llama2.model.belonging import check_belongs
from colossal_llama2.model.pretrained import stored_dtype
from colossal_llama2.model.quantized import refuse_quantized
from colossal_llama2.tokenizer.loading import tokenizer_fingerprint
from colossal_llama2.train.checkpoints import StartingPoint, find_starting_point
from colossal_llama2.train.folders import check_folders
from colossal_llama2.train.settings_checks import check_settings
from colossal_llama2.train.trained import Trained, check_adapter, plan_trained


@dataclass(frozen=True)
class OpenedGrpo:
    """A run as it is known before it is built.

    Attributes:
        start: where the policy's weights come from.
        prompts: what is answered.
        function: the user's reward function, or None.
        end_token_ids: tokens that end an answer.
        trained: what of the policy learns.
        identity: what a checkpoint must agree with.
        state: of the checkpoint that is resumed, if any.
        dtype: what the finished policy is stored in.
    """

    start: StartingPoint
    prompts: GroupedPrompts
    function: RewardFunction | None
    end_token_ids: frozenset[int]
    trained: Trained
    identity: RunIdentity
    state: RunningState | None
    dtype: torch.dtype


def open_grpo(settings: GrpoSettings) -> OpenedGrpo:
    """Open everything a run reads, and refuse what cannot work or does not belong together.

    Raises:
        InputError: a flag, a folder, or two that do not fit.
    """
    check_settings(settings)
    check_grpo(settings)
    pretrained, output, reward = settings.model.pretrained, settings.output, settings.reward
    start = find_starting_point(pretrained, settings.model.load_checkpoint, output.save_dir)
    refuse_other_start(pretrained, start)
    check_belongs(pretrained)
    refuse_quantized(pretrained, "cannot be trained")
    fingerprint = tokenizer_fingerprint(pretrained)
    prompts = open_prompts(settings, fingerprint, settings.rollouts.max_new_tokens)
    check_scorers([reward.reward_model], reward.reward_model, fingerprint)
    trained = plan_trained(settings, start)
    identity = RunIdentity(
        tokenizer_fingerprint=prompts.tokenizer_fingerprint,
        corpus_fingerprint=prompts.fingerprint,
        trained_parameters=f"{trained.name}{', all decaying' if settings.optimizer.decay_all_params else ''}",
        seed=settings.optimizer.seed,
        stage="grpo",
    )
    check_folders(settings, start, () if reward.reward_model is None else (reward.reward_model,))
    state = None if start.checkpoint_dir is None else read_running_state(start.checkpoint_dir)
    if state is not None and start.checkpoint_dir is not None:
        refuse_misfit(state, identity, start.checkpoint_dir)
    check_adapter(trained, settings, start)
    function = load_reward_function(reward.reward_function) if reward.reward_function else None
    grouped, ends = GroupedPrompts(prompts, settings.grpo.group_size), end_tokens(pretrained, prompts)
    return OpenedGrpo(start, grouped, function, ends, trained, identity, state, stored_dtype(pretrained))
