"""Who watches a run: the new rows where there are any that learn, and the loss of a stage that settles them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from colossal_llama2 import cli
from colossal_llama2.dataset.batches import Batch
from colossal_llama2.engine.session import Objective, Session
from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.expansion import new_tokens
from colossal_llama2.tokenizer.folder import EXPANSION_FILE
from colossal_llama2.tokenizer.loading import load_tokenizer
from colossal_llama2.train.checkpoints import MODELING
from colossal_llama2.train.flatness import FlatnessWatch, LossCurve
from colossal_llama2.train.row_watch import DEFAULT_INTERVAL, RowWatch
from colossal_llama2.train.schedule import default_warmup_steps
from colossal_llama2.train.settings import StageSettings
from colossal_llama2.train.trained import Trained

_NEW_ROWS, _LOSS_CURVE = "new_rows", "loss_curve"  # their names in a checkpoint


@dataclass(frozen=True)
class Watches:
    """Those who watch a run.

    Attributes:
        new_rows: see `RowWatch`; None where no new row learns, or nobody is to look.
        flatness: see `FlatnessWatch`; None where more than the embeddings learns.
    """

    new_rows: RowWatch | None = None
    flatness: FlatnessWatch | None = None

    def objective(self, plain: Objective[Batch]) -> Objective[Batch]:
        """Return what the model is asked for: as without them, with the losses on new tokens taken apart if need be."""
        return plain if self.new_rows is None else self.new_rows.objective(plain.inputs)

    def as_state(self) -> dict[str, Any]:
        """Return what they must know to go on after a resume; a collective call."""
        state: dict[str, Any] = {}
        if self.new_rows is not None:
            state[_NEW_ROWS] = self.new_rows.as_state()
        if self.flatness is not None:
            state[_LOSS_CURVE] = self.flatness.curve.as_state()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """Put a checkpoint's state back, and say what of it is missing or given up.

        Raises:
            InputError: it does not fit.
        """
        if self.new_rows is not None and _NEW_ROWS in state:
            self.new_rows.load_state(state[_NEW_ROWS])
        elif self.new_rows is not None:
            cli.say("it has no account of the new rows seen so far: they are counted from here on")
        elif _NEW_ROWS in state:
            cli.say("its account of the new rows seen so far is given up")
        if self.flatness is not None and _LOSS_CURVE in state:
            self.flatness.curve = LossCurve.from_state(state[_LOSS_CURVE])


def rows_to_watch(settings: StageSettings, trained: Trained) -> range | None:
    """Return the new rows to report on, or None.

    Raises:
        InputError: a report was asked for and there is nothing to report on.
    """
    asked, pretrained = settings.output.new_rows_interval, settings.model.pretrained
    if asked == 0:
        return None
    learn = trained.lora is None or trained.lora.embeddings
    if asked and not learn:
        raise InputError(
            f"--new_rows_interval {asked}, and this run trains no embeddings",
            remedy="leave it out, or pass --lora_train_embeddings yes",
        )
    if asked:
        return new_tokens(pretrained)
    if not learn or not (pretrained / EXPANSION_FILE).is_file():
        return None
    try:
        return new_tokens(pretrained)
    except InputError as error:
        cli.say(f"no reports on new rows: {error}")
        return None


def build_watches(settings: StageSettings, trained: Trained, session: Session, total_steps: int) -> Watches:
    """Set up those who watch a boosted model's run; a collective call."""
    new_rows = flatness = None
    rows, pretrained = rows_to_watch(settings, trained), settings.model.pretrained
    if rows is not None:
        interval = settings.output.new_rows_interval or DEFAULT_INTERVAL
        new_rows = RowWatch(session, rows, interval, pretrained, _speller(pretrained))
    if trained.embeddings_only:
        warmup = settings.optimizer.warmup_steps
        flatness = FlatnessWatch(
            warmup_steps=default_warmup_steps(total_steps) if warmup is None else warmup,
            ends=settings.model.stop_when_flat,
            model_dir=settings.output.save_dir / MODELING,
        )
    return Watches(new_rows, flatness)


def _speller(model_dir: Path) -> Callable[[int], str]:
    """Return a function that shows a token's text; the tokenizer is loaded when it is first asked."""
    tokenizer = cache(lambda: load_tokenizer(model_dir))

    def spelled(token: int) -> str:
        piece = tokenizer().convert_ids_to_tokens(token)
        if piece is None:
            return f"token {token}"
        text = tokenizer().decode([token])
        # a piece of SentencePiece shows its space by itself; a byte or a part of a character has no text
        return str(piece) if not text or "▁" in piece or "\ufffd" in text else str(text)

    return spelled
