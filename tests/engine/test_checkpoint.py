"""A checkpoint can be written at any moment, of any model, and never overrules the run that loads it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from colossal_llama2.engine import ranks
from colossal_llama2.engine.checkpoint import load_checkpoint, save_checkpoint
from colossal_llama2.engine.checkpoint_folders import whole_checkpoints
from colossal_llama2.engine.plugins import PluginName, PluginSettings
from colossal_llama2.engine.running_state import RunIdentity, RunningState
from colossal_llama2.engine.session import AdamSettings, Session
from colossal_llama2.errors import InputError

STATE = RunningState(
    epoch=0,
    step=0,
    rows_consumed=0,
    tokens=0,
    rows_per_step=1,
    world_size=1,
    plugin="zero2",
    precision="bf16",
    identity=RunIdentity("t", "c", "everything", 0),
)


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    """Make a process group of this process alone."""
    ranks.launch(seed=0)
    yield
    ranks.close()


def model_folder(folder: Path, tie: bool = False) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=tie, **sizes)).save_pretrained(folder)
    return folder


def boosted(folder: Path, plugin: PluginName, lr: float = 1e-2, decay: float = 0.1) -> Session:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    groups = [{"params": list(model.parameters()), "weight_decay": decay}]
    return Session(PluginSettings(plugin, "bf16"), model, groups, AdamSettings(lr=lr), lambda step: 1 / (step + 1))


def train_a_step(session: Session) -> float:
    ids = torch.arange(24).reshape(2, 12) % 64
    loss = session.forward(input_ids=ids, labels=ids, use_cache=False).loss
    session.backward(loss)
    session.step()
    return float(loss.detach())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("plugin", ["zero2", "gemini", "ddp"])
def test_before_the_first_step_there_is_something_to_save_already(tmp_path: Path, plugin: PluginName) -> None:
    """A stop that comes early, or a first step that fp16 overflow skipped."""
    base = model_folder(tmp_path / "base")
    first = boosted(base, plugin)
    saved = save_checkpoint(first, STATE, tmp_path / "out", base)
    assert whole_checkpoints(tmp_path / "out") == [saved]
    expected = [train_a_step(first) for _ in range(2)]
    second = boosted(base, plugin)
    load_checkpoint(second, STATE, saved)
    assert [train_a_step(second) for _ in range(2)] == expected
    assert expected[0] != expected[1]


@pytest.mark.parametrize("plugin", ["zero2", "gemini", "ddp"])
def test_a_tied_model_is_saved_and_resumed(tmp_path: Path, plugin: PluginName) -> None:
    from transformers import AutoModelForCausalLM

    base = model_folder(tmp_path / "base", tie=True)
    first = boosted(base, plugin)
    train_a_step(first)
    saved = save_checkpoint(first, STATE, tmp_path / "out", base)
    expected = [train_a_step(first) for _ in range(2)]
    second = boosted(base, plugin)
    load_checkpoint(second, STATE, saved)
    assert [train_a_step(second) for _ in range(2)] == expected
    loaded: Any = AutoModelForCausalLM.from_pretrained(saved / "modeling")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    kept = weights(saved / "modeling")
    assert torch.equal(loaded.lm_head.weight, kept["model.embed_tokens.weight"])
    assert not torch.equal(loaded.lm_head.weight, weights(base)["model.embed_tokens.weight"]), "nothing was trained"


@pytest.mark.parametrize("plugin", ["zero2", "gemini", "ddp"])
def test_the_numbers_of_this_run_win_over_the_checkpoints(tmp_path: Path, plugin: PluginName) -> None:
    base = model_folder(tmp_path / "base")
    first = boosted(base, plugin, lr=1e-2, decay=0.1)
    train_a_step(first)
    saved = save_checkpoint(first, STATE, tmp_path / "out", base)
    unchanged, changed = boosted(base, plugin, lr=1e-2, decay=0.1), boosted(base, plugin, lr=1e-4, decay=0.0)
    load_checkpoint(unchanged, STATE, saved)
    load_checkpoint(changed, STATE, saved)
    assert unchanged.learning_rate == first.learning_rate == 1e-2 / 2
    assert changed.learning_rate == 1e-4 / 2
    for session in (first, unchanged, changed):
        train_a_step(session)
    assert unchanged.learning_rate == first.learning_rate == 1e-2 * (1 / 3)
    assert changed.learning_rate == 1e-4 * (1 / 3)
    assert {group["weight_decay"] for group in changed.optimizer.param_groups} == {0.0}
    assert {group["lr"] for group in changed.optimizer.param_groups} == {changed.learning_rate}


def test_a_checkpoint_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    saved = save_checkpoint(boosted(base, "zero2"), STATE, tmp_path / "out", base)
    index = saved / "modeling" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["lm_head.weight"]
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"lm_head\.weight"):
        load_checkpoint(boosted(base, "zero2"), STATE, saved)


def test_everything_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a power cut leaves a checkpoint that looks whole and holds empty files."""
    base = model_folder(tmp_path / "base")
    flushed: set[int] = set()
    fsync = os.fsync

    def noting(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    saved = save_checkpoint(boosted(base, "zero2"), STATE, tmp_path / "out", base)
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert all(path.stat().st_ino in flushed for path in files)
