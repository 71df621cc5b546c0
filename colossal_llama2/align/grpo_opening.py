"""What a GRPO run reads, opened and checked before any process group stands and anything is written."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from colossal_llama2.align.grpo import GroupedPrompts
from colossal_llama2.align.grpo_settings import GrpoSettings, check_grpo
from colossal_llama2.align.ppo_opening import end_tokens
from colossal_llama2.align.reward_function import RewardFunction, load_reward_function
from colossal_llama2.dataset.prompt_set import PromptSet
from colossal_llama2.engine.running_state import RunIdentity, RunningState, read_running_state, refuse_misfit
from colossal_llama2.errors import InputError
from colossal_llama2.model.belonging import check_belongs, read_config
from colossal_llama2.model.pretrained import stored_dtype
from colossal_llama2.model.scalar_head import is_scorer
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
    if start.checkpoint_dir is None and (start.adapter_dir is not None or start.weights_dir != pretrained):
        raise InputError(
            "--load_checkpoint names weights, and --pretrained is both the start and the reference",
            path=start.adapter_dir or start.weights_dir,
            remedy="pass them as --pretrained (tools/merge_lora.py makes a model of an adapter)",
        )
    check_belongs(pretrained)
    fingerprint = tokenizer_fingerprint(pretrained)
    prompts = PromptSet.open(settings.data.dataset)
    _check_prompts(settings, prompts, fingerprint)
    if reward.reward_model is not None:
        check_belongs(reward.reward_model)
        if not is_scorer(reward.reward_model) or tokenizer_fingerprint(reward.reward_model) != fingerprint:
            raise InputError(
                "has no head that scores, or another tokenizer than --pretrained",
                path=reward.reward_model,
                remedy="name a model that train.py --stage reward made from the same base",
            )
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


def _check_prompts(settings: GrpoSettings, prompts: PromptSet, fingerprint: str) -> None:
    path, most = settings.data.dataset[0], settings.rollouts.max_new_tokens
    if prompts.tokenizer_fingerprint != fingerprint:
        raise InputError(
            "was made with another tokenizer than --pretrained's", path=path, remedy="use --pretrained's tokenizer"
        )
    if prompts.longest > settings.data.max_length:
        raise InputError(
            f"holds prompts of up to {prompts.longest} tokens and --max_length is {settings.data.max_length}",
            path=path,
            remedy=f"pass --max_length {prompts.longest}",
        )
    positions = read_config(settings.model.pretrained).get("max_position_embeddings")
    if isinstance(positions, int) and prompts.longest + most > positions:
        raise InputError(
            f"holds prompts of up to {prompts.longest} tokens, and with --max_new_tokens {most} they are longer than "
            f"the model's {positions} positions",
            path=path,
            remedy=f"pass --max_new_tokens {positions - prompts.longest}, or prepare shorter prompts",
        )
