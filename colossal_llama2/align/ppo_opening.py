"""What a PPO run reads, opened and checked before any process group stands and anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from colossal_llama2 import cli
from colossal_llama2.align.ppo_settings import PpoSettings, check_ppo
from colossal_llama2.align.reward_function import RewardFunction, load_reward_function
from colossal_llama2.align.vllm_rollouts import check_vllm
from colossal_llama2.dataset.conversation_markers import markers_of
from colossal_llama2.dataset.conversation_spans import Locator
from colossal_llama2.dataset.conversation_template import ChatTemplate
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.prompt_set import PromptSet
from colossal_llama2.engine.running_state import RunIdentity, RunningState, read_running_state, refuse_misfit
from colossal_llama2.errors import InputError
from colossal_llama2.model.belonging import check_belongs, read_config
from colossal_llama2.model.pretrained import check_same_shape, stored_dtype
from colossal_llama2.model.quantized import refuse_quantized
from colossal_llama2.model.scalar_head import is_scorer
from colossal_llama2.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from colossal_llama2.train.checkpoints import StartingPoint, find_starting_point
from colossal_llama2.train.folders import check_folders
from colossal_llama2.train.settings import StageSettings
from colossal_llama2.train.settings_checks import check_settings
from colossal_llama2.train.trained import Trained, check_adapter, plan_trained


@dataclass(frozen=True)
class OpenedPpo:
    """A run as it is known before it is built.

    Attributes:
        start: where the policy's weights come from.
        prompts: what is answered.
        corpus: what must not be forgotten, or None.
        function: the user's reward function, or None.
        end_token_ids: tokens that end an answer.
        trained: what of the policy learns.
        identity: what a checkpoint must agree with.
        state: of the checkpoint that is resumed, if any.
        dtype: what the finished policy is stored in.
    """

    start: StartingPoint
    prompts: PromptSet
    corpus: PreparedCorpus | None
    function: RewardFunction | None
    end_token_ids: frozenset[int]
    trained: Trained
    identity: RunIdentity
    state: RunningState | None
    dtype: torch.dtype


def open_ppo(settings: PpoSettings) -> OpenedPpo:
    """Open everything a run reads, and refuse what cannot work or does not belong together.

    Raises:
        InputError: a flag, a folder, or two that do not fit.
    """
    check_settings(settings)
    check_ppo(settings)
    if settings.rollouts.rollout == "vllm":
        check_vllm(settings)
    pretrained, named = settings.model.pretrained, settings.reward.reward_function
    start = find_starting_point(pretrained, settings.model.load_checkpoint, settings.output.save_dir)
    refuse_other_start(pretrained, start)
    check_belongs(pretrained)
    refuse_quantized(pretrained, "cannot be trained")
    fingerprint = tokenizer_fingerprint(pretrained)
    prompts = open_prompts(settings, fingerprint, settings.rollouts.max_new_tokens)
    corpus = _open_corpus(settings, fingerprint)
    check_scorers([settings.reward.reward_model, settings.critic_dir], settings.reward.reward_model, fingerprint)
    cli.say(f"the critic starts from {settings.critic_dir}; the reference is {pretrained}")
    if start.weights_dir != pretrained:
        check_same_shape(pretrained, start.weights_dir)
    trained = plan_trained(settings, start)
    identity = _identity(settings, prompts, corpus, trained)
    check_folders(settings, start, _also_read(settings))
    state = None
    if start.checkpoint_dir is not None:
        state = read_running_state(start.checkpoint_dir)
        refuse_misfit(state, identity, start.checkpoint_dir)
    check_adapter(trained, settings, start)
    function = load_reward_function(named) if named else None
    dtype = stored_dtype(pretrained)  # now: a mistake in it must not cost a run
    return OpenedPpo(start, prompts, corpus, function, end_tokens(pretrained, prompts), trained, identity, state, dtype)


def end_tokens(model_dir: Path, prompts: PromptSet) -> frozenset[int]:
    """Find what ends an answer: the token that the prompts' chat template ends a turn with, and the tokenizer's eos.

    Raises:
        InputError: there is neither.
    """
    tokenizer = load_tokenizer(model_dir)
    variables = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    template = ChatTemplate("the set of prompts", prompts.template, {**variables, "date_string": "1 Jan 2000"})
    ends = set(Locator(template, markers_of(tokenizer)).end_token_ids)
    if tokenizer.eos_token_id is not None:
        ends.add(int(tokenizer.eos_token_id))
    if not ends:
        raise InputError("the tokenizer has no token that could end an answer", path=model_dir, remedy="set eos_token")
    return frozenset(ends)


def refuse_other_start(pretrained: Path, start: StartingPoint) -> None:
    """Refuse weights from elsewhere: the reference is --pretrained, and the policy would be far from it at once.

    Raises:
        InputError: --load_checkpoint names weights alone.
    """
    if start.checkpoint_dir is not None:
        return
    if start.adapter_dir is not None:
        raise InputError(
            "is an adapter, and the reference would be the model without it",
            path=start.adapter_dir,
            remedy="merge it with tools/merge_lora.py and pass the result as --pretrained",
        )
    if start.weights_dir != pretrained:
        raise InputError(
            "--load_checkpoint takes weights alone, and --pretrained is both the start and the reference",
            path=start.weights_dir,
            remedy=f"pass --pretrained {start.weights_dir} and leave --load_checkpoint out",
        )


def _check_tokenizer(ours: str, theirs: str, path: Path) -> None:
    if ours != theirs:
        raise InputError(
            "was made with another tokenizer than --pretrained's", path=path, remedy="use --pretrained's tokenizer"
        )


def open_prompts(settings: StageSettings, fingerprint: str, max_new_tokens: int) -> PromptSet:
    """Open --dataset's prompts.

    Args:
        settings: of the run.
        fingerprint: of --pretrained's tokenizer.
        max_new_tokens: longest answer.

    Raises:
        InputError: they have another tokenizer, or are too long for the run or the model.
    """
    prompts = PromptSet.open(settings.data.dataset)
    _check_tokenizer(fingerprint, prompts.tokenizer_fingerprint, settings.data.dataset[0])
    if prompts.longest > settings.data.max_length:
        raise InputError(
            f"holds prompts of up to {prompts.longest} tokens and --max_length is {settings.data.max_length}",
            path=settings.data.dataset[0],
            remedy=f"pass --max_length {prompts.longest}",
        )
    positions = read_config(settings.model.pretrained).get("max_position_embeddings")
    longest = prompts.longest + max_new_tokens
    if isinstance(positions, int) and longest > positions:
        raise InputError(
            f"prompts of up to {prompts.longest} tokens with --max_new_tokens {max_new_tokens} need "
            f"{longest} positions, and the model has {positions}",
            path=settings.model.pretrained,
            remedy=f"pass --max_new_tokens {positions - prompts.longest}, or prepare shorter prompts",
        )
    return prompts


def _open_corpus(settings: PpoSettings, fingerprint: str) -> PreparedCorpus | None:
    dirs = settings.ptx.ptx_dataset
    if not dirs:
        return None
    corpus = PreparedCorpus.open(dirs)
    _check_tokenizer(fingerprint, corpus.tokenizer_fingerprint, dirs[0])
    return corpus


def check_scorers(folders: Sequence[Path | None], reward_model: Path | None, fingerprint: str) -> None:
    """Refuse models that cannot judge the policy's answers.

    Args:
        folders: of reward model and critic, None where there is none.
        reward_model: the one that must have a head that scores.
        fingerprint: of the policy's tokenizer.

    Raises:
        InputError: a folder is missing, has another tokenizer or no head that scores.
    """
    for folder in dict.fromkeys(filter(None, folders)):
        if not folder.is_dir():
            raise InputError("no such folder", path=folder, remedy="give the folder of a model")
        _check_tokenizer(fingerprint, tokenizer_fingerprint(folder), folder)
    if reward_model is not None and not is_scorer(reward_model):
        raise InputError(
            "has no head that scores", path=reward_model, remedy="name a model folder made by train.py --stage reward"
        )


def _identity(
    settings: PpoSettings, prompts: PromptSet, corpus: PreparedCorpus | None, trained: Trained
) -> RunIdentity:
    content = f"{prompts.fingerprint} {corpus.fingerprint if corpus else ''}"
    all_decay = ", all decaying" if settings.optimizer.decay_all_params else ""
    return RunIdentity(
        tokenizer_fingerprint=prompts.tokenizer_fingerprint,
        corpus_fingerprint=hashlib.sha256(content.encode()).hexdigest() if corpus else prompts.fingerprint,
        trained_parameters=f"{trained.name}{all_decay}",
        seed=settings.optimizer.seed,
        stage="ppo",
    )


def _also_read(settings: PpoSettings) -> Sequence[Path]:
    return [
        path
        for path in (settings.reward.reward_model, settings.critic_dir, *settings.ptx.ptx_dataset)
        if path is not None
    ]
