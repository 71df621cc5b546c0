"""A checkpoint can be written at any moment, of any model, and never overrules the run that loads it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from colossal_llama2.engine import checkpoint, ranks, snapshot
from colossal_llama2.engine.checkpoint import begin_checkpoint, load_checkpoint, save_checkpoint, save_model
from colossal_llama2.engine.checkpoint_folders import whole_checkpoints
from colossal_llama2.engine.pending_save import SaveError
from colossal_llama2.engine.plugins import PluginName, PluginSettings, Precision
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


def boosted(
    folder: Path, plugin: PluginName, lr: float = 1e-2, decay: float = 0.1, precision: Precision = "bf16"
) -> Session:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    groups = [{"params": list(model.parameters()), "weight_decay": decay}]
    return Session(PluginSettings(plugin, precision), model, groups, AdamSettings(lr=lr), lambda step: 1 / (step + 1))


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


def moments(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = sorted((checkpoint / "optimizer").glob("pytorch_optim-*.bin"))
    states = {number: state for path in files for number, state in torch.load(path, weights_only=True).items()}
    return {f"{number}.{name}": value for number, state in states.items() for name, value in state.items()}


@pytest.mark.parametrize("tie", [False, True])
def test_a_checkpoint_goes_through_every_plugin_and_precision_unchanged(tmp_path: Path, tie: bool) -> None:
    """Loaded and saved again at once: weights, moments and steps must be the same bits."""
    base = model_folder(tmp_path / "base", tie=tie)
    first = boosted(base, "zero2")
    for _ in range(3):
        train_a_step(first)
    saved = save_checkpoint(first, STATE, tmp_path / "0", base)
    expected = weights(saved / "modeling"), moments(saved)
    assert {value.dtype for value in expected[0].values()} == {torch.float32}
    assert {float(value) for name, value in expected[1].items() if name.endswith(".step")} == {3.0}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in expected[0].values())
    road: list[tuple[PluginName, Precision]] = [
        *(("ddp", "fp32"), ("gemini", "bf16"), ("zero2_cpu", "fp16"), ("gemini_auto", "fp16"), ("zero2", "fp32")),
        *(("gemini", "fp16"), ("ddp", "bf16"), ("zero2_cpu", "bf16"), ("zero2", "bf16")),
    ]
    last = first
    for place, (plugin, precision) in enumerate(road, start=1):
        last = boosted(base, plugin, precision=precision)
        load_checkpoint(last, STATE, saved)
        saved = save_checkpoint(last, STATE, tmp_path / str(place), base)
        for theirs, ours in zip(expected, (weights(saved / "modeling"), moments(saved)), strict=True):
            assert theirs.keys() == ours.keys() != set()
            different = [name for name in theirs if not torch.equal(theirs[name], ours[name])]
            assert not different, (plugin, precision, different)
    assert train_a_step(last) == train_a_step(first)
    assert train_a_step(last) == train_a_step(first)


@pytest.mark.parametrize("plugin", ["zero2", "zero2_cpu", "gemini", "ddp"])
def test_a_thread_writes_what_would_have_been_written_at_once(tmp_path: Path, plugin: PluginName) -> None:
    """Byte for byte, although training has gone on in the meantime."""
    base = model_folder(tmp_path / "base")
    session = boosted(base, plugin)
    train_a_step(session)
    at_once = save_checkpoint(session, STATE, tmp_path / "sync", base)
    save = begin_checkpoint(session, tmp_path / "async", at_once.name, base, in_background=True)
    assert not save.target.exists()
    train_a_step(session)
    save.complete(STATE)
    assert save.finished
    files = [path.relative_to(at_once) for path in sorted(at_once.rglob("*")) if path.is_file()]
    assert len(files) > 7
    assert files == [path.relative_to(save.target) for path in sorted(save.target.rglob("*")) if path.is_file()]
    assert [name for name in files if (at_once / name).read_bytes() != (save.target / name).read_bytes()] == []


@pytest.fixture
def no_large_files() -> Iterator[None]:
    """Let the system refuse every file beyond 4 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("in_background", [False, True])
def test_what_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, request: pytest.FixtureRequest, in_background: bool
) -> None:
    base = model_folder(tmp_path / "base")
    session = boosted(base, "zero2")
    before = save_checkpoint(session, STATE, tmp_path / "out", base)
    request.getfixturevalue("no_large_files")
    with pytest.raises(SaveError, match="File too large"):
        begin_checkpoint(session, tmp_path / "out", "epoch-0_step-9", base, in_background).complete(STATE)
    with pytest.raises(SaveError, match="File too large"):
        save_model(session, tmp_path / "out" / "modeling", base, torch.float32)
    assert list((tmp_path / "out").iterdir()) == [before]
    train_a_step(session)  # and the session is as it was


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", small], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("may not mount a small file system")
    try:
        session = boosted(base, "zero2")
        before = save_checkpoint(session, STATE, small, base)
        with pytest.raises(SaveError, match="No space left on device"):
            begin_checkpoint(session, small, "epoch-0_step-9", base).complete(STATE)
        assert list(small.iterdir()) == [before]
        load_checkpoint(session, STATE, before)
    finally:
        subprocess.run(["umount", small], check=True)


def test_random_states_that_are_missing_are_spoken_of(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    saved = save_checkpoint(boosted(base, "zero2"), STATE, tmp_path / "out", base)
    assert load_checkpoint(boosted(base, "zero2"), STATE, saved) == []
    (saved / "random_states" / "rank-00000.safetensors").unlink()
    assert ["missing" in line for line in load_checkpoint(boosted(base, "zero2"), STATE, saved)] == [True]


def test_a_checkpoint_without_its_optimizer_is_refused(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    saved = save_checkpoint(boosted(base, "zero2"), STATE, tmp_path / "out", base)
    (saved / "optimizer" / "pytorch_optim.bin.index.json").unlink()
    with pytest.raises(InputError, match="modeling folder to take the weights alone"):
        load_checkpoint(boosted(base, "zero2"), STATE, saved)


def test_moments_of_other_parameters_are_left_behind_and_said_to_be(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    saved = save_checkpoint(boosted(base, "zero2"), STATE, tmp_path / "out", base)
    groups = saved / "optimizer" / "pytorch_optim_group.bin"
    torch.save([{**torch.load(groups, weights_only=True)[0], "params": [0, 1]}], groups)
    session = boosted(base, "zero2")
    assert ["moments begin at zero" in line for line in load_checkpoint(session, STATE, saved)] == [True]
    train_a_step(session)


def test_the_loss_scale_goes_where_there_is_one(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    first = boosted(base, "ddp", precision="fp16")
    saved = save_checkpoint(first, STATE, tmp_path / "out", base)
    state = replace(STATE, scaler={"scale": 32.0, "growth_step": 5.0})
    other = boosted(base, "zero2", precision="fp16")
    assert load_checkpoint(other, state, saved) == []
    assert other.scaler_state()["scale"] == 32.0
    assert any("scale begins anew" in line for line in load_checkpoint(other, STATE, saved))
    assert any("for fp16 alone" in line for line in load_checkpoint(boosted(base, "zero2"), state, saved))


def test_large_models_are_cut_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(snapshot, "_BYTES_PER_FILE", 20_000)
    base = model_folder(tmp_path / "base")
    session = boosted(base, "zero2")
    train_a_step(session)
    saved = save_checkpoint(session, STATE, tmp_path / "out", base)
    names = sorted(path.name for path in (saved / "modeling").glob("*.safetensors"))
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    loaded: Any = AutoModelForCausalLM.from_pretrained(saved / "modeling")
    kept = weights(saved / "modeling")
    assert kept.keys() == dict(loaded.named_parameters()).keys()
    assert all(torch.equal(kept[name], parameter) for name, parameter in loaded.named_parameters())
    index = json.loads((saved / "modeling" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in kept.values())
    again = boosted(base, "gemini")
    load_checkpoint(again, STATE, saved)
    assert len(list((saved / "optimizer").glob("pytorch_optim-*.bin"))) > 2


def test_colossalai_saves_itself_for_plugins_that_split_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown on one that does not: the same weights and moments, and it loads what is streamed, and the other way."""
    base = model_folder(tmp_path / "base")
    first = boosted(base, "zero2")
    train_a_step(first)
    streamed = save_checkpoint(first, STATE, tmp_path / "streamed", base)
    monkeypatch.setattr(checkpoint, "_STREAMED_PLUGINS", ())
    theirs = save_checkpoint(first, STATE, tmp_path / "theirs", base)
    second = boosted(base, "zero2")
    load_checkpoint(second, STATE, streamed)
    monkeypatch.undo()
    third = boosted(base, "zero2")
    load_checkpoint(third, STATE, theirs)
    expected = [train_a_step(first) for _ in range(2)]
    assert [train_a_step(second) for _ in range(2)] == expected
    assert [train_a_step(third) for _ in range(2)] == expected
    assert (theirs / "modeling" / "config.json").read_text() == (streamed / "modeling" / "config.json").read_text()
