"""Sequence parallelism by hooks around transformers' own layers: they go on seeing tensors they know how to handle.

split_gather: between blocks each tensor-parallel rank keeps its part of the sequence (norms and residuals on 1/tp of
it); a block gathers the sequence before its column-parallel linears, and its row-parallel linear scatters it again
(Korthikanti et al., arXiv 2205.05198).
all_to_all: each rank keeps its part of the sequence throughout; only inside attention are heads exchanged for the whole
sequence (DeepSpeed Ulysses, Jacobs et al., arXiv 2309.14509).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from colossal_llama2.engine import compat
from colossal_llama2.model import document_attention

compat.install()

from colossalai.shardformer.layer._operation import (  # noqa: E402
    all_to_all_comm,
    gather_forward_split_backward,
    gather_sp_output,
    split_forward_gather_backward,
)
from colossalai.shardformer.layer.utils import SeqParallelUtils  # noqa: E402

_ULYSSES = {
    document_attention.NAME: document_attention.document_attention,
    document_attention.FLASH_NAME: document_attention.document_flash_attention,
}


def split_between(first: nn.Module, last: nn.Module, shard_config: Any) -> None:
    """Split the hidden states [B, S, H] along S before `first`, and gather them after `last`."""
    group = shard_config.sequence_parallel_process_group
    shares = shard_config.sequence_parallelism_mode == "split_gather"
    # With all_to_all the plugin averages gradients over data and sequence ranks alike; these are parts of one sum.
    scale = None if shares else 1 / dist.get_world_size(group)

    def split(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return (split_forward_gather_backward(args[0], 1, group, scale), *args[1:]), kwargs

    first.register_forward_pre_hook(split, with_kwargs=True)
    last.register_forward_hook(lambda module, args, output: gather_sp_output(output, shard_config))


def gather_before(blocks: Iterable[nn.Module], group: Any) -> None:
    """Gather the sequence at the input of attention and MLP blocks (split_gather).

    Attention reads the length off its input, so this cannot wait for the linears, which is where ColossalAI gathers.
    Its column-parallel linears all-reduce their input's gradient already: the way back is a split, no reduce-scatter.
    """

    def gather(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (gather_forward_split_backward(args[0], 1, group), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": gather_forward_split_backward(kwargs["hidden_states"], 1, group)}

    for block in blocks:
        block.register_forward_pre_hook(gather, with_kwargs=True)


def mark_partial_norms(layers: Iterable[nn.Module], blocks: Iterable[nn.Module]) -> None:
    """Tell ColossalAI which gradients come from a part of the sequence: norms outside the blocks (split_gather)."""
    gathered = {id(module) for block in blocks for module in block.modules()}
    for layer in layers:
        for module in layer.modules():
            if "Norm" in type(module).__name__ and id(module) not in gathered:
                mark_partial(module)


def mark_partial(module: nn.Module) -> None:
    """Have the gradients of a module that sees a part of the sequence added up over the ranks (split_gather)."""
    for parameter in module.parameters():
        SeqParallelUtils.marked_as_sp_partial_derived_param(parameter)


def exchange_in_attention(model: Any, layers: Iterable[nn.Module], group: Any) -> None:
    """Exchange heads for sequence inside the attention of each layer (all_to_all)."""
    inner = model.config._attn_implementation
    model.set_attn_implementation(_register(inner))
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)

    def own_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cosine_and_sine = kwargs["position_embeddings"]  # each [B, S, D]
        kwargs["position_embeddings"] = tuple(part.chunk(ranks, dim=1)[rank] for part in cosine_and_sine)
        return args, kwargs

    for layer in layers:
        attention: Any = layer.self_attn
        attention.sequence_group = group
        attention.register_forward_pre_hook(own_positions, with_kwargs=True)


def _register(inner: str) -> str:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = f"{inner}_all_to_all"
    ALL_ATTENTION_FUNCTIONS.register(name, _exchanging(_ULYSSES[inner]))
    return name


def _exchanging(attend: Callable[..., tuple[torch.Tensor, None]]) -> Callable[..., tuple[torch.Tensor, None]]:
    """Wrap an attention function: [B, heads, S / ranks, D] in, [B, S / ranks, heads, D] out."""

    def exchange(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        group = module.sequence_group
        whole = [all_to_all_comm(t.contiguous(), group, scatter_dim=1, gather_dim=2) for t in (query, key, value)]
        output, _ = attend(module, *whole, mask, **kwargs)  # [B, S, heads / ranks, D]
        return all_to_all_comm(output.contiguous(), group, scatter_dim=1, gather_dim=2), None

    return exchange
