"""What is saved is the same under every plugin and precision, in as many files as it takes, whoever writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from colossal_llama2.engine import checkpoint, snapshot
from colossal_llama2.engine.checkpoint import load_checkpoint, save_checkpoint
from colossal_llama2.engine.plugins import PluginName, Precision

pytestmark = pytest.mark.usefixtures("one_rank")


def moments(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = sorted((checkpoint / "optimizer").glob("pytorch_optim-*.bin"))
    states = {number: state for path in files for number, state in torch.load(path, weights_only=True).items()}
    return {f"{number}.{name}": value for number, state in states.items() for name, value in state.items()}


@pytest.mark.parametrize("tie", [False, True])
def test_a_checkpoint_goes_through_every_plugin_and_precision_unchanged(tiny: Any, tmp_path: Path, tie: bool) -> None:
    """Loaded and saved again at once: weights, moments and steps must be the same bits."""
    base = tiny.model_folder(tmp_path / "base", tie=tie)
    first = tiny.boosted(base, "zero2")
    for _ in range(3):
        tiny.train_a_step(first)
    saved = save_checkpoint(first, tiny.STATE, tmp_path / "0", base)
    expected = tiny.weights(saved / "modeling"), moments(saved)
    assert {value.dtype for value in expected[0].values()} == {torch.float32}
    assert {float(value) for name, value in expected[1].items() if name.endswith(".step")} == {3.0}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in expected[0].values())
    road: list[tuple[PluginName, Precision]] = [
        *(("ddp", "fp32"), ("gemini", "bf16"), ("zero2_cpu", "fp16"), ("gemini_auto", "fp16"), ("zero2", "fp32")),
        *(("gemini", "fp16"), ("ddp", "bf16"), ("zero2_cpu", "bf16"), ("zero2", "bf16")),
    ]
    last = first
    for place, (plugin, precision) in enumerate(road, start=1):
        last = tiny.boosted(base, plugin, precision=precision)
        load_checkpoint(last, tiny.STATE, saved)
        saved = save_checkpoint(last, tiny.STATE, tmp_path / str(place), base)
        for theirs, ours in zip(expected, (tiny.weights(saved / "modeling"), moments(saved)), strict=True):
            assert theirs.keys() == ours.keys() != set()
            different = [name for name in theirs if not torch.equal(theirs[name], ours[name])]
            assert not different, (plugin, precision, different)
    assert tiny.train_a_step(last) == tiny.train_a_step(first)
    assert tiny.train_a_step(last) == tiny.train_a_step(first)


def test_large_models_are_cut_into_files(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(snapshot, "_BYTES_PER_FILE", 20_000)
    base = tiny.model_folder(tmp_path / "base")
    session = tiny.boosted(base, "zero2")
    tiny.train_a_step(session)
    saved = save_checkpoint(session, tiny.STATE, tmp_path / "out", base)
    names = sorted(path.name for path in (saved / "modeling").glob("*.safetensors"))
    assert len(names) > 2
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    loaded: Any = AutoModelForCausalLM.from_pretrained(saved / "modeling")
    kept = tiny.weights(saved / "modeling")
    assert kept.keys() == dict(loaded.named_parameters()).keys()
    assert all(torch.equal(kept[name], parameter) for name, parameter in loaded.named_parameters())
    index = json.loads((saved / "modeling" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in kept.values())
    again = tiny.boosted(base, "gemini")
    load_checkpoint(again, tiny.STATE, saved)
    assert len(list((saved / "optimizer").glob("pytorch_optim-*.bin"))) > 2


def test_colossalai_saves_itself_for_plugins_that_split_tensors(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shown on one that does not: the same weights and moments, and it loads what is streamed, and the other way."""
    base = tiny.model_folder(tmp_path / "base")
    first = tiny.boosted(base, "zero2")
    tiny.train_a_step(first)
    streamed = save_checkpoint(first, tiny.STATE, tmp_path / "streamed", base)
    monkeypatch.setattr(checkpoint, "_STREAMED_PLUGINS", ())
    theirs = save_checkpoint(first, tiny.STATE, tmp_path / "theirs", base)
    second = tiny.boosted(base, "zero2")
    load_checkpoint(second, tiny.STATE, streamed)
    monkeypatch.undo()
    third = tiny.boosted(base, "zero2")
    load_checkpoint(third, tiny.STATE, theirs)
    expected = [tiny.train_a_step(first) for _ in range(2)]
    assert [tiny.train_a_step(second) for _ in range(2)] == expected
    assert [tiny.train_a_step(third) for _ in range(2)] == expected
    assert (theirs / "modeling" / "config.json").read_text() == (streamed / "modeling" / "config.json").read_text()
