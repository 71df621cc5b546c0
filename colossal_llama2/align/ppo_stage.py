"""`train.py --stage ppo`: from the flags to the finished policy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from colossal_llama2 import cli
from colossal_llama2.align.ppo import train_ppo
from colossal_llama2.align.ppo_building import build
from colossal_llama2.align.ppo_opening import OpenedPpo, open_ppo
from colossal_llama2.align.ppo_run import PpoRun
from colossal_llama2.align.ppo_settings import PpoSettings, check_ranks
from colossal_llama2.engine import ranks
from colossal_llama2.engine.checkpoint import save_model
from colossal_llama2.engine.parallel_plan import check_model
from colossal_llama2.engine.pending_save import SaveError
from colossal_llama2.errors import InputError
from colossal_llama2.model.embedding_names import build_without_memory
from colossal_llama2.model.merging import merge_adapter
from colossal_llama2.model.pretrained import check_attention
from colossal_llama2.outputs import whole_directory
from colossal_llama2.train.checkpoints import CRITIC, MODELING, Position
from colossal_llama2.train.folders import prepare_folders
from colossal_llama2.train.settings import StageSettings
from colossal_llama2.train.stopping import EXIT_STOPPED

EXIT_TROUBLE = 3


def main(settings: PpoSettings) -> int:
    """Let the policy learn; return 0, 143 when a SIGTERM ended the run after a checkpoint, 3 when trouble did."""
    opened = open_ppo(settings)
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


def _train_and_save(settings: PpoSettings, opened: OpenedPpo, run: PpoRun, position: Position) -> int:
    batch = settings.rollouts.rollout_batch
    cli.say(
        f"{settings.parallel.plugin}, {settings.parallel.mixed_precision}, {ranks.world_size()} ranks on "
        f"{ranks.device().type}; {opened.prompts.num_prompts} prompts, {batch} a rollout, "
        f"{run.learner.updates_per_rollout} updates a rollout, rollouts {position.step + 1} to {run.total_steps}"
    )
    return train_and_end(run, position, partial(_save_finished, settings, opened, run))


def train_and_end(run: PpoRun, position: Position, save: Callable[[], None]) -> int:
    """Train to the end, save, or say why it ended before and how to go on; return the exit code."""
    try:
        position, ending = train_ppo(run, position)
        if ending == "complete":  # a SIGTERM from here on waits: the model is as far as the run was to go
            save()
            return 0
    finally:
        run.stop.close()
        if run.log is not None:
            run.log.close()
    last = run.checkpoints.last
    if ending == "trouble":
        for sentence in run.state.trouble.present.values():
            cli.say(f"stopped by trouble at rollout {position.step}: {sentence}")
        cli.say(f"continue with --load_checkpoint {last} and other settings")
        return EXIT_TROUBLE
    cli.say(f"stopped by SIGTERM at rollout {position.step}; continue with --load_checkpoint {last}")
    return EXIT_STOPPED


def save_policy(settings: StageSettings, run: PpoRun, dtype: torch.dtype) -> None:
    """Write the finished policy, or its adapter, and that merged into its base where it is wanted."""
    saved, adapter = run.checkpoints.save_model(dtype), run.learner.actor.adapter
    cli.say(f"{'model' if adapter is None else 'adapter'} saved to {saved}")
    if adapter is not None and settings.lora.lora_merge and ranks.is_first():
        model = settings.output.save_dir / MODELING
        with whole_directory(model, overwrite=True) as work:
            merge_adapter(settings.model.pretrained, saved, work)
        cli.say(f"merged model saved to {model}")


def _save_finished(settings: PpoSettings, opened: OpenedPpo, run: PpoRun) -> None:
    save_policy(settings, run, opened.dtype)
    critic = run.learner.actor.companions[CRITIC]
    target = settings.output.save_dir / CRITIC
    try:
        save_model(critic.session, target, critic.model_files_dir, opened.dtype, critic.changed_files)
    except SaveError as error:
        raise InputError(
            f"the critic could not be written ({error})",
            path=target,
            remedy="free space there, then resume with --load_checkpoint latest",
        ) from None
    cli.say(f"critic saved to {target}")


def _check_division(settings: PpoSettings, opened: OpenedPpo) -> None:
    """Refuse models or sizes that cannot be divided as asked, before an earlier run is discarded."""
    mesh = settings.plugin_settings.mesh(ranks.rank(), ranks.world_size())
    check_ranks(settings, mesh.data_size)
    for folder, scores in ((opened.start.weights_dir, False), (settings.critic_dir, True)):
        model = build_without_memory(folder, scores)
        check_attention(model, folder)
        if settings.parallel.plugin == "3d":
            check_model(settings.plugin_settings, model)
