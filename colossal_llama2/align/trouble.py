"""Trouble named in words: rules over the figures of the last rollouts, each a pure function.

A rule looks at a window and at how the run began, and returns a sentence, or None where all is well. It compares the
first third of a window with the last, so that one odd rollout says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Final

Figures = Mapping[str, float]
WINDOW: Final = 12
"""Rollouts a rule looks at; with fewer it stays silent."""
START: Final = 3
"""Rollouts whose mean is how the run began."""

FAR_KL, RISING_KL = 0.5, 2.0  # nats a token: on average a token is e^0.5 = 1.6 times as likely as to the reference
LONGER = 1.5
COLLAPSED, LEAST_ENTROPY = 0.1, 0.05
FEW_ENDED = 0.5
WORSE_VALUE = 2.0
MUCH_CLIPPED = 0.4
SAMPLING_GAP = 0.1


@dataclass(frozen=True)
class Window:
    """What a rule sees.

    Attributes:
        recent: figures of the last rollouts, the newest last.
        start: mean figures of the first rollouts of the run.
    """

    recent: Sequence[Figures]
    start: Figures

    def early(self, name: str) -> float:
        """Return the mean of a figure over the first third."""
        return fmean(figures[name] for figures in self.recent[: len(self.recent) // 3])

    def late(self, name: str) -> float:
        """Return the mean of a figure over the last third."""
        return fmean(figures[name] for figures in self.recent[-(len(self.recent) // 3) :])

    def spread(self, name: str) -> float:
        """Return the standard deviation of a figure over the first third."""
        return pstdev(figures[name] for figures in self.recent[: len(self.recent) // 3])


Rule = Callable[[Window], str | None]


def kl_running_away(window: Window) -> str | None:
    """Say when the policy leaves the reference: far from it by token, and ever faster."""
    early, late = window.early("kl_per_token"), window.late("kl_per_token")
    if late < FAR_KL or late < RISING_KL * early:
        return None
    return (
        f"KL runs away: {late:.2f} nats a token and {early:.2f} before; the policy leaves the reference "
        "(lower --lr, raise --kl_coef, or pass --adaptive_kl)"
    )


def length_hacking(window: Window) -> str | None:
    """Say when the reward rises with the length of the answers: it may be paid for length."""
    shorter, longer = window.early("length"), window.late("length")
    gain = window.late("reward") - window.early("reward")
    if longer < LONGER * shorter or gain <= window.spread("reward"):
        return None
    return (
        f"the reward rises by {gain:.2f} while answers grow from {shorter:.0f} to {longer:.0f} tokens: it may be paid "
        "for length (look at the samples; --missing_end_penalty, a smaller --max_new_tokens, another reward)"
    )


def entropy_collapse(window: Window) -> str | None:
    """Say when hardly anything is left to chance: such a policy tries nothing new."""
    start, late = window.start["entropy"], window.late("entropy")
    if late > COLLAPSED * start or late > LEAST_ENTROPY:
        return None
    return (
        f"the entropy has collapsed: {late:.4f} nats a token, {start:.2f} at the beginning; the policy tries nothing "
        "new (lower --lr, raise --kl_coef or --temperature)"
    )


def answers_never_end(window: Window) -> str | None:
    """Say when most answers are cut off, and it does not get better."""
    early, late = window.early("ended"), window.late("ended")
    if late >= FEW_ENDED or late > early:
        return None
    return (
        f"{1 - late:.0%} of the answers never end (--missing_end_penalty 1, a larger --max_new_tokens, or a model that "
        "was taught to end by --stage sft)"
    )


def value_error_growing(window: Window) -> str | None:
    """Say when the critic gets worse, and explains less than a constant would."""
    early, late = window.early("value_error"), window.late("value_error")
    explained = window.late("explained_variance")
    if late < WORSE_VALUE * early or explained > 0:
        return None
    return (
        f"the critic gets worse: squared error {late:.3f}, {early:.3f} before, explained variance {explained:.2f} "
        "(lower --critic_lr, raise --critic_warmup, or pass --normalise_reward)"
    )


def steps_too_large(window: Window) -> str | None:
    """Say when clipping throws away much of what was sampled."""
    share = window.late("clip_share")
    if share < MUCH_CLIPPED:
        return None
    return f"{share:.0%} of the tokens are clipped: updates are too large (lower --lr or --ppo_epochs)"


def sampler_differs(window: Window) -> str | None:
    """Say when the sampler's log-probabilities are not those of the training pass."""
    gap = window.late("sampling_gap")
    if gap < SAMPLING_GAP:
        return None
    return (
        f"sampling and training disagree by {gap:.2f} nats a token: answers are not drawn from the policy that learns "
        "(--mixed_precision bf16 instead of fp16, --rollout model)"
    )


RULES: Final[dict[str, Rule]] = {
    rule.__name__: rule
    for rule in (
        kl_running_away,
        length_hacking,
        entropy_collapse,
        answers_never_end,
        value_error_growing,
        steps_too_large,
        sampler_differs,
    )
}
WATCHED: Final = (
    "kl_per_token",
    "length",
    "reward",
    "entropy",
    "ended",
    "value_error",
    "explained_variance",
    "clip_share",
    "sampling_gap",
)


class TroubleWatch:
    """Keeps the figures that the rules look at, and says what begins to go wrong.

    Attributes:
        present: trouble that is there, by its rule's name.
    """

    def __init__(self) -> None:
        self._recent: list[dict[str, float]] = []
        self._start: list[dict[str, float]] = []
        self.present: dict[str, str] = {}

    def look(self, figures: Figures) -> list[str]:
        """Take in a rollout's figures, and return the trouble that was not there before, a sentence each."""
        watched = {name: float(figures[name]) for name in WATCHED}
        self._start = [*self._start, watched][:START]
        self._recent = [*self._recent, watched][-WINDOW:]
        if len(self._recent) < WINDOW:
            return []
        window = Window(self._recent, {name: fmean(one[name] for one in self._start) for name in WATCHED})
        found = {name: sentence for name, rule in RULES.items() if (sentence := rule(window)) is not None}
        begun = [sentence for name, sentence in found.items() if name not in self.present]
        self.present = found
        return begun

    def as_state(self) -> dict[str, list[dict[str, float]] | dict[str, str]]:
        """Return what a checkpoint keeps."""
        return {"recent": self._recent, "start": self._start, "present": self.present}

    def load_state(self, state: Mapping[str, list[dict[str, float]]]) -> None:
        """Go on from what a checkpoint kept."""
        self._recent, self._start = list(state["recent"]), list(state["start"])
        self.present = dict(state["present"])  # type: ignore[arg-type]
