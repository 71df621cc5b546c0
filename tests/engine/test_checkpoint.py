"""A checkpoint can be written before anything was learned, of any model, and never overrules the run that loads it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama2.engine.checkpoint import load_checkpoint, save_checkpoint
from colossal_llama2.engine.checkpoint_folders import whole_checkpoints
from colossal_llama2.engine.plugins import PluginName
from colossal_llama2.errors import InputError

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.mark.parametrize("plugin", ["zero2", "gemini", "ddp"])
def test_before_the_first_step_there_is_something_to_save_already(
    tiny: Any, tmp_path: Path, plugin: PluginName
) -> None:
    """A stop that comes early, or a first step that fp16 overflow skipped."""
    base = tiny.model_folder(tmp_path / "base")
    first = tiny.boosted(base, plugin)
    saved = save_checkpoint(first, tiny.STATE, tmp_path / "out", base)
    assert whole_checkpoints(tmp_path / "out") == [saved]
    expected = [tiny.train_a_step(first) for _ in range(2)]
    second = tiny.boosted(base, plugin)
    load_checkpoint(second, tiny.STATE, saved)
    assert [tiny.train_a_step(second) for _ in range(2)] == expected
    assert expected[0] != expected[1]


@pytest.mark.parametrize("plugin", ["zero2", "gemini", "ddp"])
def test_a_tied_model_is_saved_and_resumed(tiny: Any, tmp_path: Path, plugin: PluginName) -> None:
    from transformers import AutoModelForCausalLM

    base = tiny.model_folder(tmp_path / "base", tie=True)
    first = tiny.boosted(base, plugin)
    tiny.train_a_step(first)
    saved = save_checkpoint(first, tiny.STATE, tmp_path / "out", base)
    expected = [tiny.train_a_step(first) for _ in range(2)]
    second = tiny.boosted(base, plugin)
    load_checkpoint(second, tiny.STATE, saved)
    assert [tiny.train_a_step(second) for _ in range(2)] == expected
    loaded: Any = AutoModelForCausalLM.from_pretrained(saved / "modeling")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    kept = tiny.weights(saved / "modeling")
    assert torch.equal(loaded.lm_head.weight, kept["model.embed_tokens.weight"])
    assert not torch.equal(loaded.lm_head.weight, tiny.weights(base)["model.embed_tokens.weight"]), (
        "nothing was trained"
    )


@pytest.mark.parametrize("plugin", ["zero2", "gemini", "ddp"])
def test_the_numbers_of_this_run_win_over_the_checkpoints(tiny: Any, tmp_path: Path, plugin: PluginName) -> None:
    base = tiny.model_folder(tmp_path / "base")
    first = tiny.boosted(base, plugin, lr=1e-2, decay=0.1)
    tiny.train_a_step(first)
    saved = save_checkpoint(first, tiny.STATE, tmp_path / "out", base)
    unchanged, changed = tiny.boosted(base, plugin, lr=1e-2, decay=0.1), tiny.boosted(base, plugin, lr=1e-4, decay=0.0)
    load_checkpoint(unchanged, tiny.STATE, saved)
    load_checkpoint(changed, tiny.STATE, saved)
    assert unchanged.learning_rate == first.learning_rate == 1e-2 / 2
    assert changed.learning_rate == 1e-4 / 2
    for session in (first, unchanged, changed):
        tiny.train_a_step(session)
    assert unchanged.learning_rate == first.learning_rate == 1e-2 * (1 / 3)
    assert changed.learning_rate == 1e-4 * (1 / 3)
    assert {group["weight_decay"] for group in changed.optimizer.param_groups} == {0.0}
    assert {group["lr"] for group in changed.optimizer.param_groups} == {changed.learning_rate}


def test_a_checkpoint_that_lacks_a_weight_is_refused(tiny: Any, tmp_path: Path) -> None:
    base = tiny.model_folder(tmp_path / "base")
    saved = save_checkpoint(tiny.boosted(base, "zero2"), tiny.STATE, tmp_path / "out", base)
    index = saved / "modeling" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["lm_head.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"lm_head\.weight"):
        load_checkpoint(tiny.boosted(base, "zero2"), tiny.STATE, saved)


def test_everything_is_on_the_disk_before_the_name_is(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut leaves a checkpoint that looks whole and holds empty files."""
    base = tiny.model_folder(tmp_path / "base")
    flushed: set[int] = set()
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    saved = save_checkpoint(tiny.boosted(base, "zero2"), tiny.STATE, tmp_path / "out", base)
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert all(path.stat().st_ino in flushed for path in files)


def test_random_states_that_are_missing_are_spoken_of(tiny: Any, tmp_path: Path) -> None:
    base = tiny.model_folder(tmp_path / "base")
    saved = save_checkpoint(tiny.boosted(base, "zero2"), tiny.STATE, tmp_path / "out", base)
    assert load_checkpoint(tiny.boosted(base, "zero2"), tiny.STATE, saved) == []
    (saved / "random_states" / "rank-00000.safetensors").unlink()
    assert ["missing" in line for line in load_checkpoint(tiny.boosted(base, "zero2"), tiny.STATE, saved)] == [True]


def test_a_checkpoint_without_its_optimizer_is_refused(tiny: Any, tmp_path: Path) -> None:
    base = tiny.model_folder(tmp_path / "base")
    saved = save_checkpoint(tiny.boosted(base, "zero2"), tiny.STATE, tmp_path / "out", base)
    (saved / "optimizer" / "pytorch_optim.bin.index.json").unlink()
    with pytest.raises(InputError, match="modeling folder to take the weights alone"):
        load_checkpoint(tiny.boosted(base, "zero2"), tiny.STATE, saved)


def test_moments_of_other_parameters_are_left_behind_and_said_to_be(tiny: Any, tmp_path: Path) -> None:
    base = tiny.model_folder(tmp_path / "base")
    saved = save_checkpoint(tiny.boosted(base, "zero2"), tiny.STATE, tmp_path / "out", base)
    groups = saved / "optimizer" / "pytorch_optim_group.bin"
    torch.save([{**torch.load(groups, weights_only=True)[0], "params": [0, 1]}], groups)
    session = tiny.boosted(base, "zero2")
    assert ["moments begin at zero" in line for line in load_checkpoint(session, tiny.STATE, saved)] == [True]
    tiny.train_a_step(session)


def test_the_loss_scale_goes_where_there_is_one(tiny: Any, tmp_path: Path) -> None:
    base = tiny.model_folder(tmp_path / "base")
    first = tiny.boosted(base, "ddp", precision="fp16")
    saved = save_checkpoint(first, tiny.STATE, tmp_path / "out", base)
    state = replace(tiny.STATE, scaler={"scale": 32.0, "growth_step": 5.0})
    other = tiny.boosted(base, "zero2", precision="fp16")
    assert load_checkpoint(other, state, saved) == []
    assert other.scaler_state()["scale"] == 32.0
    assert any("scale begins anew" in line for line in load_checkpoint(other, tiny.STATE, saved))
    assert any("for fp16 alone" in line for line in load_checkpoint(tiny.boosted(base, "zero2"), state, saved))
