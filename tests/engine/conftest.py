"""Models small enough to add up by hand or to train in no time, and the benchmark's measurements of a training step."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from colossal_llama2.engine import ranks
from colossal_llama2.engine.plugins import PluginName, PluginSettings, Precision
from colossal_llama2.engine.running_state import RunIdentity, RunningState
from colossal_llama2.engine.session import AdamSettings, Session
from colossal_llama2.model.model_shape import ModelShape, shape_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny_shape() -> ModelShape:
    """Give a Llama of 1,704 parameters: embedding and head 256 each, two layers of 592, a norm of 8."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    with torch.device("meta"):
        return shape_of(LlamaForCausalLM(config))


@pytest.fixture(scope="session")
def training_memory() -> Any:
    """Give the module that measures what a training step takes."""
    name = "training_memory"
    specification = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look themselves up there
    specification.loader.exec_module(module)
    return module


class TinyTraining:
    """A model of two layers, boosted and trained by hand in this process, and the state of a run that does."""

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

    @staticmethod
    def model_folder(folder: Path, tie: bool = False) -> Path:
        """Make a model folder, the same each time."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        LlamaForCausalLM(LlamaConfig(vocab_size=64, tie_word_embeddings=tie, **sizes)).save_pretrained(folder)
        return folder

    @staticmethod
    def boosted(
        folder: Path, plugin: PluginName, lr: float = 1e-2, decay: float = 0.1, precision: Precision = "bf16"
    ) -> Session:
        """Boost the model of a folder."""
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(folder)
        groups = [{"params": list(model.parameters()), "weight_decay": decay}]
        return Session(
            PluginSettings(plugin, precision), model, groups, AdamSettings(lr=lr), lambda step: 1 / (step + 1)
        )

    @staticmethod
    def train_a_step(session: Session) -> float:
        """Train on the same tokens as ever; return the loss."""
        ids = torch.arange(24).reshape(2, 12) % 64
        loss = session.forward(input_ids=ids, labels=ids, use_cache=False).loss
        session.backward(loss)
        session.step()
        return float(loss.detach())

    @staticmethod
    def weights(folder: Path) -> dict[str, torch.Tensor]:
        """Read a model folder's weights."""
        return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.fixture(scope="session")
def tiny() -> type[TinyTraining]:
    """Give a tiny model, and what is done with it."""
    return TinyTraining


@pytest.fixture
def one_rank() -> Iterator[None]:
    """Make a process group of this process alone."""
    ranks.launch(seed=0)
    yield
    ranks.close()


class ThreadGroup:
    """Stands for a process group whose ranks are threads: an all-reduce waits until every thread has come."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks, timeout=30)
        self._given: dict[int, torch.Tensor] = {}

    def all_reduce(self, tensor: torch.Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None) -> None:
        assert group is self
        self._given[threading.get_ident()] = tensor.clone()
        self._barrier.wait()
        stacked = torch.stack(list(self._given.values()))
        self._barrier.wait()
        tensor.copy_(stacked.max(0).values if op == dist.ReduceOp.MAX else stacked.sum(0))


@pytest.fixture
def thread_group(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], ThreadGroup]:
    """Give what makes a group of so many ranks that are threads of this process."""

    def make(num_ranks: int) -> ThreadGroup:
        group = ThreadGroup(num_ranks)
        monkeypatch.setattr(dist, "all_reduce", group.all_reduce)
        return group

    return make
