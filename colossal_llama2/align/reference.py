"""The frozen policy that direct methods stay near: what it says is kept, or it is the policy without its adapter."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from colossal_llama2 import cli
from colossal_llama2.align.compared_set import ComparedSet
from colossal_llama2.align.direct_batches import DirectBatch, DirectCollate, Floats, Sequences, answer_log_probs
from colossal_llama2.align.frozen import AdapterOff
from colossal_llama2.align.reference_files import KeptIdentity, read_kept, write_kept
from colossal_llama2.dataset.batches import Batch
from colossal_llama2.engine import ranks
from colossal_llama2.engine.running_state import read_running_state
from colossal_llama2.engine.session import CrossEntropies, Objective, Session
from colossal_llama2.errors import InputError
from colossal_llama2.model.fingerprint import model_fingerprint
from colossal_llama2.model.lora import embeddings_learn
from colossal_llama2.train.checkpoints import StartingPoint
from colossal_llama2.train.settings import StageSettings
from colossal_llama2.train.stage import model_inputs

REFERENCE_DIR = "reference_log_probs"
ReferenceKind = Literal["auto", "kept", "adapter_off"]
_STATE = "reference"


@dataclass(frozen=True)
class ReferenceOptions:
    """The frozen model that the trained one is compared with: the one that training started from."""

    reference: ReferenceKind = "auto"
    """kept: its log-probabilities are computed once, before training, and no second model is in memory; adapter_off:
    the policy without its adapter, at a forward pass a step; auto: adapter_off for one epoch with a new LoRA adapter,
    where both cost the same and nothing need be kept, else kept."""
    reference_log_probs: Path | None = None
    """Folder of the log-probabilities that are kept, for any number of models and sets (default:
    SAVE_DIR/reference_log_probs)."""


class Reference(Protocol):
    """Says what the frozen model gives the answers of a micro-batch."""

    def of(self, batch: DirectBatch) -> torch.Tensor:
        """Return log-probabilities [N] of the answers, in nats, fp32; not between a forward and its backward pass."""
        ...


class KeptReference:
    """Reads what came with the batch."""

    def of(self, batch: DirectBatch) -> torch.Tensor:
        """See `Reference`."""
        return batch.reference.to(ranks.device())


class AdapterOffReference:
    """Runs the policy without its adapter.

    Args:
        session: trains a new adapter and nothing else.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._policy = session, AdapterOff(session)

    def of(self, batch: DirectBatch) -> torch.Tensor:
        """See `Reference`."""
        model = self._session.model
        trains = model.training
        model.eval()  # dropout would make another model of it at every call
        try:
            with self._policy.ready() as forward:
                logits = forward(**model_inputs(batch)).logits
                return answer_log_probs(logits, batch, self._session.cross_entropies).sums
        finally:
            model.train(trains)


@dataclass
class References:
    """Finds a run's reference, and keeps what it says.

    Attributes:
        settings: of the run.
        options: its flags on this.
        start: where the weights come from.
        sequences: what must be known.
    """

    settings: StageSettings
    options: ReferenceOptions
    start: StartingPoint
    sequences: Sequence[Sequences]
    _sums: dict[tuple[str, Sequences], Floats] = field(default_factory=dict)
    _state: dict[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse a reference that cannot be had, before anything is loaded.

        Raises:
            InputError: naming the flag.
        """
        if self.options.reference == "adapter_off" and (reason := self._no_adapter_off()):
            raise InputError(f"--reference adapter_off: {reason}", remedy="pass --reference kept, or leave it out")
        if self.start.checkpoint_dir is not None:
            self._state = _state_of(self.start.checkpoint_dir)
            if self.options.reference not in ("auto", self._state["kind"]):
                raise InputError(
                    f"was made with --reference {self._state['kind']}, not {self.options.reference}",
                    path=self.start.checkpoint_dir,
                    remedy="leave --reference out",
                )

    def kept(self, data: ComparedSet, sequences: Sequences) -> Floats | None:
        """Return what was kept of a set, a number a sequence; None before `begin`, or where nothing is kept."""
        return self._sums.get((data.fingerprint, sequences))

    def begin(self, session: Session, sets: Sequence[tuple[ComparedSet, DirectCollate]]) -> Reference:
        """Make the reference ready, with the model's weights as training starts; a collective call.

        Raises:
            InputError: what is kept does not fit, or is gone.
        """
        kind = self._state.get("kind") or self._choose()
        if kind == "adapter_off":
            self._state = {"kind": kind}
            cli.say("reference: the policy without its adapter, a forward pass a step")
            return AdapterOffReference(session)
        model = self._state.get("model") or self._fingerprint()
        for data, collate in sets:
            for sequences in self.sequences:
                self._sums[data.fingerprint, sequences] = self._obtain(session, data, collate, sequences, model)
        self._state = {"kind": kind, "model": model}
        return KeptReference()

    def as_state(self) -> dict[str, Any]:
        """Return what a checkpoint must know."""
        return {_STATE: dict(self._state)}

    def _choose(self) -> str:
        if self.options.reference != "auto":
            return self.options.reference
        return "kept" if self._no_adapter_off() or self.settings.data.num_epochs > 1 else "adapter_off"

    def _no_adapter_off(self) -> str:
        """Say why the policy without its adapter is not what training starts from; empty where it is."""
        lora, model = self.settings.lora, self.settings.model
        if not lora.lora_rank:
            return "there is no adapter without --lora_rank"
        if self.start.adapter_dir is not None and self.start.checkpoint_dir is None:
            return "training goes on from an adapter, which belongs to the reference"
        if model.train_new_rows_only or embeddings_learn(lora.lora_train_embeddings, model.pretrained):
            return "embeddings learn beside the adapter"
        return ""

    def _fingerprint(self) -> str:
        own = model_fingerprint(self.start.weights_dir, self.start.adapter_dir) if ranks.is_first() else ""
        return ranks.texts_of_ranks(own)[0]

    def _obtain(
        self, session: Session, data: ComparedSet, collate: DirectCollate, sequences: Sequences, model: str
    ) -> Floats:
        home = self.options.reference_log_probs or self.settings.output.save_dir / REFERENCE_DIR
        count = data.num_answers if sequences == "answers" else data.num_rows
        what = "answers" if sequences == "answers" else f"mismatched{collate.max_length}"
        precision = self.settings.parallel.mixed_precision
        identity = KeptIdentity(model, data.fingerprint, what, precision, count)
        found = read_kept(home, identity)
        ranks.barrier()  # nobody writes before everybody has looked
        folder = identity.folder(home)
        if found is not None:
            cli.say(f"reference: log-probabilities of {count} {sequences} from {folder}")
            return found
        self._refuse_to_compute(folder)
        began = time.perf_counter()
        computed = compute_sums(
            session, data.num_rows, self.settings.data.micro_batch_size, _rows_of(data, collate, sequences), count
        )
        if ranks.is_first():
            write_kept(home, identity, computed)
        ranks.barrier()
        seconds = time.perf_counter() - began
        cli.say(f"reference: log-probabilities of {count} {sequences} computed in {seconds:.1f} s, kept in {folder}")
        return computed

    def _refuse_to_compute(self, folder: Path) -> None:
        if self.start.checkpoint_dir is not None:
            raise InputError(
                "is gone, and the model that it is of is trained further",
                path=folder,
                remedy="name the folder it was moved to with --reference_log_probs; without it this run cannot go on",
            )
        if self.settings.parallel.plugin == "gemini_auto":
            raise InputError(
                "is not there, and --plugin gemini_auto cannot run a model before its first training step",
                path=folder,
                remedy="pass --plugin gemini, or compute it with that first and name it with --reference_log_probs",
            )


def compute_sums(
    session: Session, num_rows: int, micro_batch_size: int, batch_of: Callable[[Sequence[int]], DirectBatch], count: int
) -> Floats:
    """Run a model over a whole set without learning, each data-parallel rank over its share; a collective call.

    Args:
        session: the boosted model.
        num_rows: rows of the set.
        micro_batch_size: rows a rank computes at a time.
        batch_of: makes a micro-batch of rows by their numbers, of none at all too.
        count: sequences of the set.

    Returns:
        [count] log-probabilities in nats, the same on every rank; 0 for a sequence that no batch had.
    """
    sums = torch.zeros(count, dtype=torch.float32, device=ranks.device())
    mesh = session.mesh

    def collect(output: Any, batch: Batch, cross_entropies: CrossEntropies) -> torch.Tensor:
        assert isinstance(batch, DirectBatch)
        said = answer_log_probs(output.logits, batch, cross_entropies).sums
        if mesh.speaks_for_loss:
            sums[batch.numbers.to(sums.device)] = said.float()
        return said.sum()

    objective = Objective(model_inputs, collect)
    together = micro_batch_size * mesh.data_size
    quiet = not (ranks.is_first() and sys.stderr.isatty())
    with session.measuring():
        for first in tqdm(range(0, num_rows, together), desc="reference", unit="batch", disable=quiet):
            begin = first + mesh.data_rank * micro_batch_size
            # ranks that have run out of rows run nothing: forward passes may be collective
            own = range(min(begin, num_rows), min(begin + micro_batch_size, num_rows))
            session.measure([batch_of(own)], objective)
    dist.all_reduce(sums)  # one rank has put a number in each place, the others left 0
    result: Floats = sums.cpu().numpy().astype(np.float32)
    return result


def _rows_of(data: ComparedSet, collate: DirectCollate, sequences: Sequences) -> Callable[[Sequence[int]], DirectBatch]:
    of = collate.of_answers if sequences == "answers" else collate.of_mismatched
    return lambda numbers: of([data.row(number) for number in numbers])


def _state_of(checkpoint_dir: Path) -> dict[str, str]:
    """Read what a checkpoint says of the reference."""
    state: Mapping[str, Any] = read_running_state(checkpoint_dir).watched.get(_STATE, {})
    if state.get("kind") not in ("kept", "adapter_off"):
        raise InputError(
            "does not say what its reference was",
            path=checkpoint_dir,
            remedy="pass its modeling folder, which becomes the reference of a new run",
        )
    return {name: str(value) for name, value in state.items()}
