"""Causal attention that stays inside each document of a spliced row, as an attention function of transformers.

A row holds several documents. The batch says where each one begins (``cu_seq_lens_q``, transformers' own name), and
attention is computed document by document: what lies outside is never computed, rather than computed and masked. On
CUDA in half precision one variable-length FlashAttention kernel does all documents (it ships with torch, nothing to
build).
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from colossal_llama2.errors import InputError

NAME = "document_attention"
FLASH_NAME = "document_flash_attention"


@dataclass(frozen=True, eq=False)
class Documents:
    """Where the documents of a batch lie, once for all layers: no layer copies bounds, or waits for them.

    Attributes:
        lengths: of each piece in tokens, padding at a row's end among them, on the host.
        bounds: [N + 1] int32 over the flattened B * S, on the device.
        longest: largest of the lengths.
    """

    lengths: tuple[int, ...]
    bounds: torch.Tensor
    longest: int

    @classmethod
    def of(cls, bounds: torch.Tensor, on_device: torch.Tensor) -> Documents:
        """Read the lengths off bounds, which waits for a device if they lie on one, and keep the bounds on it."""
        lengths = tuple(bounds.diff().tolist())
        return cls(lengths, on_device, max(lengths))


def register() -> None:
    """Make both functions known to transformers under their names; safe to call again.

    Of their masks transformers is told nothing: then it makes none, and does not read the positions on the host to see
    whether rows are packed, which would wait for the device.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for name, function in ((NAME, document_attention), (FLASH_NAME, document_flash_attention)):
        ALL_ATTENTION_FUNCTIONS.register(name, function)


@torch.compiler.disable  # its calls are as many as documents: a compiler would unroll them, anew for every batch
def document_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally inside each document, one `scaled_dot_product_attention` per document.

    Documents of one length in one call, or of a similar one padded to the same, are no faster on a CPU
    (`benchmarks/document_attention.py`): what gathering them costs is more than what a call costs.

    Args:
        module: the attention layer; not used.
        query: [B, H, S, D].
        key: [B, K, S, D] with K dividing H.
        value: [B, K, S, D].
        attention_mask: must be None; the documents' bounds stand in its place.
        kwargs: ``documents``, or ``cu_seq_lens_q`` [N + 1] int32 over the flattened B * S (on any device) to make them
            of; ``scaling``, ``dropout`` and, for models with a window, ``sliding_window`` in tokens.

    Returns:
        [B, S, H, D], and None for the weights that are never formed.
    """
    _refuse_what_is_not_computed(kwargs)
    batch, heads, length, depth = query.shape
    # A CPU's kernel shares keys among heads; CUDA's for fp32 does not, and torch would fall back to whole matrices.
    shared = key.shape[1] != heads and query.device.type == "cpu"
    if not shared and key.shape[1] != heads:
        key, value = (tensor.repeat_interleave(heads // key.shape[1], dim=1) for tensor in (key, value))
    lengths = _documents(kwargs, query.device).lengths
    how: dict[str, Any] = {
        "dropout_p": kwargs.get("dropout") or 0.0,
        "scale": kwargs.get("scaling"),
        "enable_gqa": shared,
    }
    window = kwargs.get("sliding_window")
    if lengths == (length,) * batch:  # every row is one document: there is nothing to take apart
        output = F.scaled_dot_product_attention(query, key, value, **how, **_causality(length, window, query.device))
        return output.transpose(1, 2), None
    # Split and cat, not slices: the gradient of a slice is a tensor of the whole row, once per document.
    documents = zip(*(_flatten(tensor).split(lengths) for tensor in (query, key, value)), strict=True)
    attended = []
    for q, k, v in documents:  # each [length of the document, heads, D]
        output = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            **how,
            **_causality(len(q), window, query.device),
        )
        attended.append(output[0].transpose(0, 1))
    return torch.cat(attended).view(batch, length, heads, depth), None


def document_flash_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Do what `document_attention` does with torch's variable-length FlashAttention: CUDA, fp16 or bf16, no dropout.

    Shapes and arguments as there.
    """
    from torch.nn.attention.varlen import varlen_attn

    _refuse_what_is_not_computed(kwargs)
    if kwargs.get("dropout"):
        raise InputError("the model has attention dropout, and the kernel none", remedy="leave out --use_flash_attn")
    batch, heads, length, depth = query.shape
    # Under autocast rotary embeddings turn queries and keys to fp32; the kernel takes one half precision for all three.
    query, key = query.to(value.dtype), key.to(value.dtype)
    grouped: dict[str, Any] = {"enable_gqa": True} if key.shape[1] != heads else {}
    if grouped and "enable_gqa" not in inspect.signature(varlen_attn).parameters:  # came after torch 2.11
        grouped = {}
        key, value = (tensor.repeat_interleave(heads // key.shape[1], dim=1) for tensor in (key, value))
    documents = _documents(kwargs, query.device)
    window = kwargs.get("sliding_window")
    output = varlen_attn(
        _flatten(query),
        _flatten(key),
        _flatten(value),
        documents.bounds,
        documents.bounds,
        documents.longest,
        documents.longest,
        scale=kwargs.get("scaling"),
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    assert isinstance(output, torch.Tensor)
    return output.view(batch, length, heads, depth), None


def _documents(kwargs: dict[str, Any], device: torch.device) -> Documents:
    """Return the batch's documents; who calls a model by hand may give their bounds alone, at a price per layer."""
    found = kwargs.get("documents")
    return (
        found
        if isinstance(found, Documents)
        else Documents.of(kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_q"].to(device))
    )


def _refuse_what_is_not_computed(kwargs: dict[str, Any]) -> None:
    """Some models hand their attention more than scores and a window; leaving it out would be another model."""
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise InputError(
                f"the model's attention needs {name}, which attention by document does not compute",
                remedy="choose a model without it (Llama, Mistral, Qwen, Gemma 3 ...)",
            )


def _flatten(tensor: torch.Tensor) -> torch.Tensor:
    """[B, H, S, D] -> [B * S, H, D], the rows behind one another."""
    return tensor.transpose(1, 2).reshape(-1, tensor.shape[1], tensor.shape[3])


def _causality(length: int, window: int | None, device: torch.device) -> dict[str, Any]:
    if window is None or window >= length:
        return {"is_causal": True}
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return {"attn_mask": (distance >= 0) & (distance < window)}
