"""How a boosted model's loss is taken from its head: whole, divided over ranks, or before its logits exist."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from colossal_llama2.engine.chunked_loss import HeadPlace
from colossal_llama2.engine.deferred_head import DeferredHead, can_defer
from colossal_llama2.engine.master_weights import boosted_module
from colossal_llama2.engine.parallel_loss import cross_entropies
from colossal_llama2.engine.summed_loss import Summed

if TYPE_CHECKING:
    from colossal_llama2.engine.session import Session

# Maps logits [N, V] and targets [N] to the cross-entropies [N] in nats, fp32; under tensor parallelism V is a part.
CrossEntropies = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def head_cross_entropies(session: Session) -> CrossEntropies:
    """Return what takes the cross-entropies of the model's logits."""
    place = _place(session)
    return _whole_cross_entropies if place.group is None else partial(cross_entropies, **place._asdict())


def divided_head(session: Session) -> Any:
    """Return the output head where its rows are divided over ranks, else None; so on other pipeline stages."""
    model: Any = boosted_module(session.model)
    head = model.get_output_embeddings() if session.settings.tp > 1 else None
    return head if hasattr(head, "new_num_embeddings") else None


def defer_head(session: Session, fused: bool) -> CrossEntropies | None:
    """Take the head out of the forward pass; return what takes cross-entropies of hidden states, None if it stays."""
    model: Any = boosted_module(session.model)
    # A pipeline's schedule wants the output of its last stage to be what it was made for.
    if session.settings.pp > 1 or not can_defer(model):
        return None
    hooks = None
    if session.forward_is_collective:  # Gemini gathers a weight when one of torch's functions is given it
        from colossalai.tensor.param_op_hook import ColoParamOpHookManager

        hooks = partial(ColoParamOpHookManager.use_hooks, *session.model.hooks)
    return DeferredHead(model.get_output_embeddings(), _place(session), session.autocast, hooks, fused)


def expect_gradient(cross_entropies: CrossEntropies, gradient: float) -> None:
    """Tell a deferred head what gradient the next sums will get, so that fp16 is scaled where it is rounded."""
    if isinstance(cross_entropies, DeferredHead):
        cross_entropies.upstream = gradient or 1.0


def summed(cross_entropies: CrossEntropies, predicted: torch.Tensor, targets: torch.Tensor) -> Summed:
    """Take the sum of cross-entropies in the way that costs least, and themselves without a gradient."""
    if isinstance(cross_entropies, DeferredHead):
        return cross_entropies.summed(predicted, targets)
    losses = cross_entropies(predicted, targets)
    return Summed(losses.sum(), losses.detach())


def _place(session: Session) -> HeadPlace:
    head = divided_head(session)
    if head is None:
        return HeadPlace()
    first_row = session.mesh.place[2] * (head.new_num_embeddings // session.settings.tp)
    return HeadPlace(first_row, session.plugin.tp_group)


def _whole_cross_entropies(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float(), targets, reduction="none")
