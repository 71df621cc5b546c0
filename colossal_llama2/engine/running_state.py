"""Where a run stands: what must be known beside weights and moments to go on as if nothing had happened."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from colossal_llama2.errors import InputError

VERSION = 3
_READABLE = (2, VERSION)  # 2 lacks what is watched, which begins anew then
FILE_NAME = "running_states.json"


@dataclass(frozen=True)
class RunIdentity:
    """What must be the same for a checkpoint to be continued; anything else is another run."""

    tokenizer_fingerprint: str
    corpus_fingerprint: str
    trained_parameters: str
    seed: int
    stage: str = "pretrain"  # what a checkpoint is of that does not say


@dataclass(frozen=True)
class RunningState:
    """A position in a run.

    Attributes:
        epoch: epoch being trained, from 0.
        step: optimizer steps done in the whole run.
        rows_consumed: rows of this epoch that were trained on, over all ranks: valid for any number of ranks.
        tokens: tokens trained on in the whole run.
        rows_per_step: rows in a global batch when it was saved.
        world_size: number of ranks when it was saved; another number cannot restore each rank's random state.
        plugin: ColossalAI plugin when it was saved.
        precision: what forward and backward computed in.
        scaler: state of the fp16 loss scaler.
        identity: what the checkpoint belongs to.
        watched: what those who watch the run must know to go on, each under its name and in a version of its own.
        version: layout of this file.
    """

    epoch: int
    step: int
    rows_consumed: int
    tokens: int
    rows_per_step: int
    world_size: int
    plugin: str
    precision: str
    identity: RunIdentity
    scaler: dict[str, float] = field(default_factory=dict)
    watched: dict[str, Any] = field(default_factory=dict)
    version: int = VERSION


def write_running_state(state: RunningState, checkpoint_dir: Path) -> None:
    """Write the state as JSON into a checkpoint folder."""
    (checkpoint_dir / FILE_NAME).write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")


def read_running_state(checkpoint_dir: Path) -> RunningState:
    """Read the state of a checkpoint folder.

    Raises:
        InputError: it is missing, damaged or of another version.
    """
    path = checkpoint_dir / FILE_NAME
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        version = stored["version"]
    except FileNotFoundError:
        raise InputError(
            "not a checkpoint (no running_states.json)",
            path=checkpoint_dir,
            remedy="name an epoch-E_step-S folder, its modeling folder, or `latest`",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot be read ({error})", path=path, remedy="use an older checkpoint") from None
    if version not in _READABLE:
        raise InputError(
            f"running state of version {version}, and this is version {VERSION}",
            path=path,
            remedy="start from its modeling folder, which takes the weights alone",
        )
    try:
        stored["identity"] = RunIdentity(**stored["identity"])
        return RunningState(**stored)
    except (TypeError, KeyError) as error:
        raise InputError(f"cannot be read ({error})", path=path, remedy="use an older checkpoint") from None


def refuse_misfit(state: RunningState, identity: RunIdentity, checkpoint_dir: Path) -> None:
    """Compare a checkpoint's identity with this run's.

    Raises:
        InputError: naming the first thing that differs.
    """
    reasons = {
        "tokenizer_fingerprint": "another tokenizer",
        "corpus_fingerprint": "other data",
        "trained_parameters": "other weights in training ({theirs}, not {ours})",
        "seed": "--seed {theirs}, not {ours}",
        "stage": "--stage {theirs}, not {ours}",
    }
    for entry in fields(RunIdentity):
        theirs, ours = getattr(state.identity, entry.name), getattr(identity, entry.name)
        if theirs != ours:
            raise InputError(
                "was made with " + reasons[entry.name].format(theirs=theirs, ours=ours),
                path=checkpoint_dir,
                remedy="continue it as it was, or pass its modeling folder to take what it trained into a new run",
            )


def describe_changes(state: RunningState, now: RunningState) -> list[str]:
    """Say what is done otherwise from here on and does not make another run of it, a sentence each.

    Args:
        state: of the checkpoint.
        now: the same position as this run would save it.
    """
    changes = []
    if state.plugin != now.plugin:
        changes.append(f"saved by --plugin {state.plugin}, continued by {now.plugin}")
    if state.precision != now.precision:
        changes.append(
            f"computed in {state.precision}, in {now.precision} from here on; weights and moments go on in fp32"
        )
    if state.rows_per_step != now.rows_per_step:
        changes.append(f"a step was {state.rows_per_step} rows and is {now.rows_per_step} from here on")
    return changes
