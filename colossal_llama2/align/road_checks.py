"""What cannot work is found for all steps at the start: a road takes days, and nobody watches its fifth stage begin."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from colossal_llama2 import cli
from colossal_llama2.align import grpo_settings, ppo_settings
from colossal_llama2.align.direct import Dpo, Orpo, Simpo
from colossal_llama2.align.distill import Distill
from colossal_llama2.align.kto import Kto
from colossal_llama2.align.reward import Reward
from colossal_llama2.align.road_records import Found
from colossal_llama2.align.road_sets import Known
from colossal_llama2.align.road_steps import Road, Step
from colossal_llama2.align.sft import Sft
from colossal_llama2.dataset.inputs import find_inputs
from colossal_llama2.engine.nodes import launch
from colossal_llama2.engine.nodes.remote import ROOT
from colossal_llama2.errors import InputError
from colossal_llama2.train.pretrain import Pretraining
from colossal_llama2.train.settings import StageSettings
from colossal_llama2.train.settings_checks import check_settings
from colossal_llama2.train.stage import Stage

# Paths that are written, or whose absence is no mistake.
_NOT_READ: Final = frozenset({"tensorboard_dir", "data_cache_dir", "data_jsonl_output_dir", "json"})
_SETS: Final = ("dataset", "eval_dataset", "ptx_dataset")
_MODELS: Final = ("pretrained", "reward_model", "critic", "teacher")
_STAGES: Final[dict[str, type[Stage]]] = {
    "pretrain": Pretraining,
    "sft": Sft,
    "reward": Reward,
    "distill": Distill,
    "dpo": Dpo,
    "simpo": Simpo,
    "orpo": Orpo,
    "kto": Kto,
}
_SAMPLING: Final[dict[str, tuple[Callable[[Any], None], Callable[[Any, int], None]]]] = {
    "ppo": (ppo_settings.check_ppo, ppo_settings.check_ranks),
    "grpo": (grpo_settings.check_grpo, grpo_settings.check_ranks),
}


@dataclass(frozen=True)
class Checker:
    """Checks a road.

    Attributes:
        road: that is checked.
        found: where its steps stand; those that are done are left alone.
        existence: whether what is read must lie there, or be made by an earlier step.
    """

    road: Road
    found: Mapping[str, Found]
    existence: bool = True

    def check(self) -> None:
        """Check every step that is yet to be done.

        Raises:
            InputError: naming the line of the setting, or of the step, that cannot work.
        """
        for number, step in enumerate(self.road.steps):
            if self.found[step.name].is_done:
                continue
            try:
                self._check_paths(step, self.road.steps[:number])
                if step.launch is not None:
                    self._check_stage(step)
                    self._check_sets(step)
            except InputError as error:
                raise step.located(error, self.road.path) from None

    def _check_paths(self, step: Step, earlier: tuple[Step, ...]) -> None:
        for name, path in paths_read(step.settings):
            if name == step.kind.output or name in _NOT_READ:
                continue
            maker = self._owner(path)
            if maker is not None and maker not in earlier:
                which = "this very step" if maker is step else f"step {maker.name}, which comes later"
                raise InputError(f"--{name} {path} is made by {which}", remedy="change their order, or name another")
            if maker is not None:
                _refuse_no_holdout(name, path, maker)
            elif self.existence and not _is_there(path):
                raise InputError(f"--{name} {path} does not exist", remedy="name what is there, or $STEP for a step's")

    def _owner(self, path: Path) -> Step | None:
        there = path.absolute()
        return next((step for step in self.road.steps if there.is_relative_to(step.folder.absolute())), None)

    def _check_stage(self, step: Step) -> None:
        assert step.launch is not None
        data_ranks = None
        if self.existence or step.launch.hostfile is None:
            hosts, nproc = launch.check(step.launch, [str(ROOT / step.kind.script)])
            data_ranks = step.settings.plugin_settings.mesh(0, len(hosts) * nproc).data_size
        check_settings(step.settings)
        if step.kind.name in _STAGES:
            _STAGES[step.kind.name](step.settings).check()
        elif step.kind.name in _SAMPLING:
            check_flags, check_ranks = _SAMPLING[step.kind.name]
            check_flags(step.settings)
            if data_ranks is not None:
                check_ranks(step.settings, data_ranks)

    def _check_sets(self, step: Step) -> None:
        known = Known(self.road, self.found)
        settings: StageSettings = step.settings
        own = known.tokenizer(settings.model.pretrained)
        for name, path in paths_read(settings):
            if name in _MODELS and own is not None:
                other = known.tokenizer(path)
                if other is not None and own.differs(other):
                    raise InputError(
                        f"--{name} {path} has another tokenizer ({other}) than {settings.model.pretrained} ({own})",
                        remedy="name a model that was made from the same",
                    )
            found = known.set(path) if name in _SETS else None
            if found is None:
                continue
            wanted = ("pretrain", "sft") if name == "ptx_dataset" else step.kind.reads
            if wanted and found.type not in wanted:
                raise InputError(
                    f"--{name} {path} is a set of type {found.type}, and this stage reads {' or '.join(wanted)}",
                    remedy="name another, or prepare it so",
                )
            if own is not None and found.tokenizer is not None and own.differs(found.tokenizer):
                raise InputError(
                    f"--{name} {path} is encoded with another tokenizer ({found.tokenizer}) than that of "
                    f"{settings.model.pretrained} ({own})",
                    remedy="prepare it with the model's",
                )
            if found.max_length > settings.data.max_length and found.type != "prompt":
                raise InputError(
                    f"--{name} {path} has rows of up to {found.max_length} tokens, and --max_length is "
                    f"{settings.data.max_length}",
                    remedy=f"set max_length to {found.max_length}",
                )


def paths_read(settings: Any) -> Iterator[tuple[str, Path]]:
    """Yield the name and value of every path that a command is told, one at a time."""
    for each in dataclasses.fields(settings):
        value = getattr(settings, each.name)
        if dataclasses.is_dataclass(value):
            yield from paths_read(value)
        elif each.name == "data_input_dirs":
            yield from ((each.name, Path(part)) for part in cli.comma_separated(str(value)))
        else:
            items = value if isinstance(value, tuple) else (value,)
            yield from ((each.name, item) for item in items if isinstance(item, Path))


def _is_there(path: Path) -> bool:
    if not path.exists() and glob.has_magic(str(path)):
        find_inputs([str(path)])  # says itself when a pattern finds nothing
        return True
    return path.exists()


def _refuse_no_holdout(name: str, path: Path, maker: Step) -> None:
    if "set" not in maker.kind.makes or path.absolute() != maker.folder.absolute() / "holdout":
        return
    options = maker.settings if maker.kind.name == "prepare_dataset" else maker.settings.mix
    if options.holdout in ("0", "0%", ""):
        raise InputError(
            f"--{name} {path}: step {maker.name} (line {maker.line}) sets nothing aside",
            remedy="give it a holdout, 1% say",
        )
