"""What a step of a road can be: the tools and the stages, what each takes from those before it and what it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from functools import cache
from typing import Any, Final, Literal

from colossal_llama2 import cli
from colossal_llama2.align.stages import STAGES
from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings
from colossal_llama2.dataset.prepare_pretrain_dataset import PrepareSettings
from colossal_llama2.engine.nodes.launch import LaunchSettings
from colossal_llama2.model import init_model
from colossal_llama2.tokenizer import init_tokenizer
from colossal_llama2.tokenizer.mine_pieces import MineSettings

Thing = Literal["pieces", "tokenizer", "model", "scorer", "set"]
_REWARD: Final = "reward"
_PAIRS: Final = ("preference",)
_READS: Final = {
    **dict.fromkeys(("pretrain", "distill"), ("pretrain", "sft")),
    **dict.fromkeys(("reward", "dpo", "simpo", "orpo", "kto"), _PAIRS),
    **dict.fromkeys(("ppo", "grpo"), ("prompt",)),
    "sft": ("sft",),
}


@dataclass(frozen=True)
class Kind:
    """A kind of step.

    Attributes:
        name: as a road names it.
        settings_type: whose flags are its settings.
        script: what is started, from the project's root.
        output: the flag that names its folder.
        whole: file that is there, below the folder, when the step is done; None for a stage, where it depends.
        makes: what later steps may take from it.
        takes: flags that are given what the last step before it made, where nothing else is said.
        sets: further flags that the road sets unless the step does.
        reads: types of the sets that a stage learns from; none where the stage alone knows.
        is_tool: it runs alone on this machine; a stage is launched on all ranks.
    """

    name: str
    settings_type: type[Any]
    script: str
    output: str
    whole: str | None = None
    makes: tuple[Thing, ...] = ()
    takes: Mapping[str, Thing] = field(default_factory=dict)
    sets: Mapping[str, str] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    is_tool: bool = True

    @property
    def own(self) -> frozenset[str]:
        """Flags that are the road's business alone."""
        further = ("overwrite",) if self.is_tool else ("overwrite", "stage", "load_checkpoint", "config_file")
        return frozenset((self.output, *further))

    @property
    def flags(self) -> dict[str, Field[Any]]:
        """Every flag by its name."""
        return dict(cli.flags(self.settings_type))


_CACHE: Final = "{road_dir}/cache"
_ENCODES: Final[Mapping[str, Thing]] = {"tokenizer_dir": "tokenizer"}
TOOLS: Final[dict[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind(
            "mine_pieces",
            MineSettings,
            "tools/mine_pieces.py",
            "output",
            whole="pieces.jsonl",
            makes=("pieces",),
            takes={"source_tokenizer_dir": "tokenizer"},
        ),
        Kind(
            "init_tokenizer",
            init_tokenizer.Settings,
            "tools/init_tokenizer.py",
            "target_tokenizer_dir",
            whole="expansion.json",
            makes=("tokenizer",),
            takes={"source_tokenizer_dir": "tokenizer", "expand_tokens_file": "pieces"},
        ),
        Kind(
            "init_model",
            init_model.Settings,
            "tools/init_model.py",
            "target_model_path",
            whole="config.json",
            makes=("model", "tokenizer"),
            takes={"source_model_and_tokenizer_path": "model", "target_tokenizer_path": "tokenizer"},
        ),
        Kind(
            "prepare_pretrain_dataset",
            PrepareSettings,
            "tools/prepare_pretrain_dataset.py",
            "data_arrow_output_dir",
            whole="manifest.json",
            makes=("set",),
            takes=_ENCODES,
            sets={"data_cache_dir": _CACHE, "data_jsonl_output_dir": "None"},
        ),
        Kind(
            "prepare_dataset",
            PrepareSetSettings,
            "tools/prepare_dataset.py",
            "data_arrow_output_dir",
            whole="manifest.json",
            makes=("set",),
            takes=_ENCODES,
        ),
    )
}


@cache
def stages() -> dict[str, Kind]:
    """Return the stages that `train.py` knows, by name."""
    return {name: _stage(name, settings_type) for name, (settings_type, *_) in STAGES.items()}


def _stage(name: str, settings_type: type[Any]) -> Kind:
    takes: dict[str, Thing] = {"pretrained": "model"}
    if any(flag == "reward_model" for flag, _ in cli.flags(settings_type)):
        takes["reward_model"] = "scorer"
    makes: tuple[Thing, ...] = ("scorer",) if name == _REWARD else ("model", "tokenizer")
    reads = _READS.get(name, ())
    return Kind(name, settings_type, "train.py", "save_dir", makes=makes, takes=takes, reads=reads, is_tool=False)


def kinds(is_tool: bool) -> dict[str, Kind]:
    """Return all tools, or all stages."""
    return TOOLS if is_tool else stages()


@cache
def launch_flags() -> frozenset[str]:
    """Return the names of what says on which machines and ranks a stage is started."""
    return frozenset(name for name, _ in cli.flags(LaunchSettings))


def names_paths(flag: Field[Any], name: str) -> bool:
    """Tell whether a flag's values are paths, in which ``$STEP`` stands for what an earlier step made."""
    return "Path" in str(flag.type) or name == "data_input_dirs"
