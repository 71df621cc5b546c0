"""Choosing the next token of every running text; each draws by its own numbers, whoever runs beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

# Divided by less, logits leave what float32 holds; at this one a logit 0.001 lower is already as good as never drawn.
_COLDEST = 1e-5


@dataclass(frozen=True)
class SamplingOptions:
    """How one text is written.

    Attributes:
        temperature: 0, and anything up to 0.00001, takes the likeliest token always.
        top_p: draw from the fewest likeliest tokens that together reach this probability.
        top_k: draw from this many likeliest tokens; 0 for no such limit.
        presence_penalty: taken from the logit of each token that was written already.
        frequency_penalty: taken once for every time that it was.
        logit_bias: added to the logits of these tokens.
        seed: of the text's own random numbers.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0


class Drawer:
    """One text's options, its random numbers and the tokens it has written.

    The numbers are made on the CPU whatever the device, so that a seed means the same on all.
    """

    def __init__(self, options: SamplingOptions) -> None:
        self.options = options
        self._generator = torch.Generator().manual_seed(options.seed)
        self._written: Counter[int] = Counter()

    def uniform(self) -> float:
        """Return the next random number, from 0 up to but not including 1."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def note(self, token: int) -> None:
        """Remember a token that was written."""
        self._written[token] += 1

    def adjust(self, logits: torch.Tensor) -> None:
        """Put penalties and biases on logits of shape [V], in place."""
        options = self.options
        if options.logit_bias:
            tokens, biases = list(options.logit_bias), list(options.logit_bias.values())
            logits[tokens] += torch.tensor(biases, device=logits.device)
        if self._written and (options.presence_penalty or options.frequency_penalty):
            counts = torch.tensor(list(self._written.values()), dtype=torch.float32)
            penalties = options.presence_penalty + options.frequency_penalty * counts
            logits[list(self._written)] -= penalties.to(logits.device)


def choose_tokens(logits: torch.Tensor, drawers: Sequence[Drawer]) -> list[int]:
    """Choose one token for each row.

    Args:
        logits: [B, V] in float32; changed in place.
        drawers: B of them.

    Returns:
        B token ids.
    """
    for row, drawer in enumerate(drawers):
        drawer.adjust(logits[row])
    chosen = logits.argmax(-1)
    options = [drawer.options for drawer in drawers]
    drawn = [row for row, one in enumerate(options) if one.temperature > _COLDEST]
    # Whether a text's distribution is sorted decides what its number draws: it must be the text's own affair.
    for cut in (False, True):
        rows = [row for row in drawn if _is_cut(options[row]) == cut]
        if rows:
            device = logits.device
            chosen[rows] = draw(
                logits[rows] / torch.tensor([options[row].temperature for row in rows], device=device).unsqueeze(-1),
                torch.tensor([drawers[row].uniform() for row in rows], device=device, dtype=torch.float32),
                [options[row] for row in rows] if cut else None,
            )
    tokens = [int(token) for token in chosen.tolist()]
    for drawer, token in zip(drawers, tokens, strict=True):
        drawer.note(token)
    return tokens


def draw(logits: torch.Tensor, uniforms: torch.Tensor, cuts: Sequence[SamplingOptions] | None = None) -> torch.Tensor:
    """Draw one token a row by turning its cumulative distribution around.

    Args:
        logits: [B, V], divided by the temperature already.
        uniforms: [B], random numbers in [0, 1).
        cuts: whose `top_k` and `top_p` cut each row's distribution; None for none. It is sorted for that, the dearest
            step of all.

    Returns:
        [B] token ids.
    """
    probabilities = logits.softmax(-1)
    order = None
    if cuts is not None:
        probabilities, order = probabilities.sort(stable=True, dim=-1, descending=True)
        top_p = torch.tensor([cut.top_p for cut in cuts], device=logits.device).unsqueeze(-1)
        top_k = torch.tensor([cut.top_k or logits.shape[-1] for cut in cuts], device=logits.device).unsqueeze(-1)
        # The token that passes top_p may still be drawn, so what counts is what stands before a token.
        kept = probabilities.cumsum(-1) - probabilities < top_p
        kept &= torch.arange(logits.shape[-1], device=logits.device) < top_k
        kept[:, 0] = True
        probabilities = probabilities * kept
    cumulative = probabilities.cumsum(-1)
    targets = (uniforms * cumulative[:, -1]).unsqueeze(-1)
    picked = torch.searchsorted(cumulative, targets, right=True)
    # Rounding may put the target at the very end: the last token that has any probability is meant then.
    last = (probabilities > 0).long().cumsum(-1).argmax(-1, keepdim=True)
    picked = torch.minimum(picked, last)
    return (picked if order is None else order.gather(-1, picked)).squeeze(-1)


def _is_cut(options: SamplingOptions) -> bool:
    return options.top_p < 1 or options.top_k > 0
