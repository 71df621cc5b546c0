"""`train.py --stage kto`: learning from answers that are good or bad each by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from colossal_llama2.align import direct_losses
from colossal_llama2.align.compared_set import ComparedSet
from colossal_llama2.align.direct_batches import DirectBatch, answer_log_probs
from colossal_llama2.align.direct_settings import KtoSettings, refuse_out_of_range
from colossal_llama2.align.direct_stage import DirectStage
from colossal_llama2.align.log_probs import SequenceLogProbs
from colossal_llama2.dataset.batches import Batch
from colossal_llama2.engine import ranks
from colossal_llama2.engine.session import CrossEntropies, Objective, Session
from colossal_llama2.errors import InputError
from colossal_llama2.train.stage import Figures, LossSums
from colossal_llama2.train.supervised import run_stage


class Kto(DirectStage):
    """Make good answers likelier and bad ones less so than the reference does, each by itself."""

    name = "kto"
    sequences = ("answers", "mismatched")
    figure_names = ("accuracy", "desirable", "desirable_reward", "undesirable_reward", "log_prob", "reference_point")
    settings: KtoSettings

    def __init__(self, settings: KtoSettings) -> None:
        super().__init__(settings)
        self._session: Session | None = None
        self._reference_point = torch.zeros(())

    def check(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            InputError: naming the flag.
        """
        super().check()
        options = self.settings.kto
        refuse_out_of_range({"beta": options.beta}, above_zero=True)
        refuse_out_of_range(
            {"desirable_weight": options.desirable_weight, "undesirable_weight": options.undesirable_weight},
            above_zero=False,
        )
        if self.settings.parallel.plugin == "gemini_auto":
            raise InputError(
                "--plugin gemini_auto cannot run a model before its first training step, and KTO begins with its KL",
                remedy="pass --plugin gemini, or zero2_cpu to keep what the optimizer holds in host memory",
            )

    def check_set(self, data: ComparedSet, path: Path) -> None:
        """Refuse a set whose answers are all of one kind.

        Raises:
            InputError: nothing could be told apart.
        """
        if data.num_best in (0, data.num_answers):
            kind = "good" if data.num_best else "bad"
            raise InputError(
                f"has answers that are all {kind}", path=path, remedy="prepare it with good (rank 0) and bad ones"
            )

    def begin(self, session: Session) -> None:
        """Make the reference ready."""
        super().begin(session)
        self._session = session

    def prepare(self, batches: Iterable[Batch]) -> None:
        """Estimate the reference point from mismatched pairs, over all micro-batches of all ranks."""
        session = self._session
        assert session is not None
        objective = Objective(self.inputs, self._log_ratio_sum)
        total, count = torch.zeros((), device=ranks.device(), dtype=torch.float64), 0
        with session.measuring():
            for batch in batches:
                assert isinstance(batch, DirectBatch)
                assert batch.mismatched is not None
                total += session.measure([batch.mismatched], objective).double()
                count += len(batch.mismatched.numbers)
        speaks = session.mesh.speaks_for_loss
        sums = ranks.sum_over_ranks(float(total) * speaks, float(count * session.mesh.speaks_for_rows))
        point = direct_losses.kto_reference_point(*(torch.tensor(value) for value in sums))
        self._reference_point = point.to(ranks.device())

    def count(self, batch: Batch) -> int:
        """Count the answers."""
        assert isinstance(batch, DirectBatch)
        return len(batch.ranks)

    def loss_sums(self, output: Any, batch: Batch, cross_entropies: CrossEntropies) -> LossSums:
        """Add up the losses of all answers."""
        assert isinstance(batch, DirectBatch)
        said: SequenceLogProbs = answer_log_probs(output.logits, batch, cross_entropies)
        good = batch.ranks.to(said.sums.device) == 0
        options = self.settings.kto
        weights = options.desirable_weight, options.undesirable_weight
        losses, rewards, correct = direct_losses.kto(
            said.sums, self.said_by_reference(), good, self._reference_point, options.beta, weights
        )
        values = (
            correct.sum(),
            good.sum(),
            rewards[good].sum(),
            rewards[~good].sum(),
            said.sums.sum(),
            self._reference_point * len(good),
        )
        return LossSums(losses.sum(), dict(zip(self.figure_names, values, strict=True)))

    def figures(self, sums: Mapping[str, float], count: int) -> Figures:
        """Return accuracy, mean rewards of either kind, their difference, and the reference point, in nats."""
        good = sums["desirable"]
        bad = count - good
        of_good = sums["desirable_reward"] / good if good else None
        of_bad = sums["undesirable_reward"] / bad if bad else None
        return {
            "accuracy": sums["accuracy"] / count,
            "desirable_reward": of_good,
            "undesirable_reward": of_bad,
            "margin": None if of_good is None or of_bad is None else of_good - of_bad,
            "log_prob": sums["log_prob"] / count,
            "reference_point": sums["reference_point"] / count,
        }

    def _log_ratio_sum(self, output: Any, batch: Batch, cross_entropies: CrossEntropies) -> torch.Tensor:
        assert isinstance(batch, DirectBatch)
        said = answer_log_probs(output.logits, batch, cross_entropies)
        return (said.sums - self.said_by_reference()).sum()


def main(settings: KtoSettings) -> int:
    """Train; return 0, or 143 when a SIGTERM ended the run after a checkpoint."""
    return run_stage(Kto(settings))
