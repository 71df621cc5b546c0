"""A reward that is the user's own Python: found by its name, called with texts, its answer checked."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from colossal_llama2.errors import InputError

RewardFunction = Callable[..., Sequence[float]]


def load_reward_function(named: str) -> RewardFunction:
    """Find ``module:name`` or ``path/to/file.py:name``. Importing it runs it: it is the user's own code.

    Raises:
        InputError: there is no such file, module or function.
    """
    where, _, name = named.rpartition(":")
    if not where or not name.isidentifier():
        raise InputError(
            f"--reward_function {named} names no function", remedy="write module:name or path/to/file.py:name"
        )
    module = _load_file(Path(where)) if where.endswith(".py") else _load_module(where)
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"--reward_function {named}: there is no function {name} in {where}")
    found: RewardFunction = function
    return found


def call_reward_function(
    function: RewardFunction, prompts: list[str], answers: list[str], records: list[dict[str, Any]]
) -> list[float]:
    """Ask for the reward of each answer.

    Args:
        function: called with the keywords `prompts`, `answers` and `records`; returns a finite number an answer.
        prompts: as the chat template rendered them.
        answers: without their end token.
        records: of the prompts, as they were read.

    Raises:
        InputError: what it returned is not that.
    """
    returned = function(prompts=prompts, answers=answers, records=records)
    try:
        rewards = [float(value) for value in returned]
    except (TypeError, ValueError) as error:
        raise InputError(f"--reward_function returned no list of numbers ({error})") from None
    if len(rewards) != len(answers):
        raise InputError(f"--reward_function returned {len(rewards)} rewards for {len(answers)} answers")
    for answer, reward in zip(answers, rewards, strict=True):
        if not math.isfinite(reward):
            raise InputError(f"--reward_function returned {reward} for the answer {answer[:80]!r}")
    return rewards


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError("does not exist", path=path, remedy="write --reward_function path/to/file.py:name")
    specification = importlib.util.spec_from_file_location(f"reward_function_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look themselves up there
    specification.loader.exec_module(module)
    return module


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise InputError(
                f"--reward_function: there is no module {name}", remedy="give its file as path/to/file.py:name"
            ) from None
        raise  # the module is there, and what it imports is not: its own traceback says more
