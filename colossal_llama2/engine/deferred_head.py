"""An output head that waits for the loss: the model gives hidden states, and the loss applies the head chunk by chunk.

Logits are the largest tensor of a training step: 8 rows of 4,096 tokens over 69,104 pieces are 9 GB in fp32. With the
head deferred, what stands in the place of a model's logits is its last hidden states; whoever selects the learned
positions of logits selects them of these, and `Session.cross_entropies` does the rest: a `DeferredHead`, which gives
the cross-entropies one by one, or their sum, which costs less (`summed_loss`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from colossal_llama2.engine.chunked_loss import MOST_LOGITS_BYTES, HeadPlace, linear_cross_entropies
from colossal_llama2.engine.liger_loss import fused_kernel
from colossal_llama2.engine.summed_loss import Summed, Wanted, summed_cross_entropies

# Models whose logits are the head's product and nothing else; some scale them, or bound them by a tanh.
PLAIN_HEADS: Final = ("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi3", "olmo2")
_CHANGES_LOGITS: Final = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


def can_defer(model: Any) -> bool:
    """Tell whether a model's logits are ``hidden @ head.T``, so that the loss can take them itself."""
    head, config = model.get_output_embeddings(), model.config
    plain = config.model_type in PLAIN_HEADS and not any(getattr(config, name, None) for name in _CHANGES_LOGITS)
    return plain and isinstance(getattr(head, "weight", None), torch.Tensor) and getattr(head, "bias", None) is None


class DeferredHead:
    """Takes the head out of a model's forward pass.

    Args:
        head: the output head; its weight may be replaced by the plugin later on.
        place: which rows of the vocabulary it holds here.
        autocast: makes the context in which the head is to be computed.
        hooks: makes the context in which a plugin notices that a weight is used; None where none has to.
        fused: a fused kernel may compute sums.

    Attributes:
        upstream: the gradient that a sum is going to get, as far as is known before.
    """

    def __init__(
        self,
        head: nn.Module,
        place: HeadPlace,
        autocast: Callable[[], AbstractContextManager[Any]],
        hooks: Callable[[], AbstractContextManager[Any]] | None = None,
        fused: bool = True,
    ) -> None:
        self._head: Any = head
        self._place = place
        self._autocast, self._hooks, self._fused = autocast, hooks, fused
        self.upstream = 1.0
        head.forward = _as_it_came  # type: ignore[method-assign]

    def __call__(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropies [N] in nats, fp32, of hidden states [N, D] with their targets [N]."""
        if self._hooks is not None:
            with self._hooks():
                return self._in_checkpoints(hidden, targets)
        with self._autocast():
            return linear_cross_entropies(*self._as_computed(hidden), targets, self._place)

    def summed(self, hidden: torch.Tensor, targets: torch.Tensor) -> Summed:
        """Return their sum, and themselves without a gradient."""
        if self._hooks is not None:  # a plugin that must notice every use of the weight wants torch's own operations
            losses = self(hidden, targets)
            return Summed(losses.sum(), losses.detach())
        with self._autocast():
            hidden, weight = self._as_computed(hidden)
            how = Wanted(upstream=self.upstream, place=self._place, most_bytes=MOST_LOGITS_BYTES)
            kernel = fused_kernel(hidden, how) if self._fused else None
            return summed_cross_entropies(hidden, weight, targets, how, kernel)

    def _as_computed(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states and the rows that stand for tokens, as autocast would have them.

        What it does inside a product it does not do inside a function of our own.
        """
        weight = self._head.weight[: getattr(self._head, "num_valid_embeddings_local", None)]
        if not torch.is_autocast_enabled(hidden.device.type):
            return hidden, weight
        dtype = torch.get_autocast_dtype(hidden.device.type)
        return hidden.to(dtype), weight.to(dtype)

    def _in_checkpoints(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Do the same by torch's own operations, each of which the plugin notices, and recompute what they keep.

        The weight's gradients of the chunks are added up by autograd, in the weight's own dtype.
        """

        def losses(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(F.linear(part, self._head.weight).float(), wanted, reduction="none")

        rows = max(1, MOST_LOGITS_BYTES // (4 * self._head.out_features))
        if len(hidden) <= rows:
            return losses(hidden, targets)
        chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
        return torch.cat([checkpoint(losses, *chunk, use_reentrant=False) for chunk in chunks])


def _as_it_came(hidden: torch.Tensor) -> torch.Tensor:
    return hidden
