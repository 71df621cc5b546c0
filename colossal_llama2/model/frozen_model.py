"""A causal language model whose weights stay as they are, run over tokens that it has and rows that it has not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from colossal_llama2.errors import InputError
from colossal_llama2.model.inference import choose_device
from colossal_llama2.model.quantized import refuse_quantized

_PROBED_TOKENS = 8
# Far above what half precision rounds away, far below what another formula would leave.
_TOLERANCE = 0.02


class States(NamedTuple):
    """Hidden states, [B, S, D]: after the layer asked for, and after the last one and its norm."""

    matched: torch.Tensor
    last: torch.Tensor


class FrozenModel:
    """The base model, as teacher and as student; nothing in it ever gets a gradient.

    Attributes:
        device: where it lies.
        tied: whether embedding and head are one matrix.
        num_layers: how many layers there are, for states after one of them.
        context_length: longest sequence it takes, in tokens.
    """

    def __init__(self, model_dir: Path, device: str) -> None:
        """Load the weights once, in the dtype they are stored in.

        Raises:
            InputError: no such device, the model cannot be loaded, or its embedding or head does more than a
                look-up or a product, which rows alone would not describe.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        self.device = choose_device(device)
        disable_progress_bar()
        refuse_quantized(model_dir, "its rows cannot be distilled")
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                model_dir, dtype="auto", local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"cannot be loaded ({first_line})", path=model_dir) from None
        self._model = model.eval().requires_grad_(False).to(self.device)
        self._embedding, self._head = model.get_input_embeddings(), model.get_output_embeddings()
        self.tied = self._embedding.weight is self._head.weight
        config = model.config.get_text_config()
        self.num_layers = int(config.num_hidden_layers)
        self.context_length = int(getattr(config, "max_position_embeddings", None) or 1 << 20)
        self._input_scale, self._output_scale = self._probe(model_dir)

    @property
    def input_rows(self) -> torch.Tensor:
        """The input embedding, [R, D]."""
        weight: torch.Tensor = self._embedding.weight
        return weight

    @property
    def output_rows(self) -> torch.Tensor:
        """The output head, [R, D]."""
        weight: torch.Tensor = self._head.weight
        return weight

    @property
    def output_bias(self) -> torch.Tensor | None:
        """The output head's bias, [R], if it has one."""
        return getattr(self._head, "bias", None)

    def states(
        self, ids: torch.Tensor, layer: int | None, num_base: int = 0, rows: torch.Tensor | None = None
    ) -> States:
        """Run the layers.

        Args:
            ids: [B, S] int64; with `rows`, those from `num_base` on stand for ``rows[id - num_base]``.
            layer: the layer whose states are asked for, 0 for the embedding; None for the last one and its norm.
            num_base: tokens of the base.
            rows: [K, D] in fp32, which get a gradient.
        """
        if rows is None:
            embedded = self._embedding(ids)
        else:
            is_new = ids >= num_base
            embedded = self._embedding(torch.where(is_new, 0, ids))
            new = functional.embedding((ids - num_base).clamp(min=0), rows) * self._input_scale
            embedded = torch.where(is_new[..., None], new.to(embedded.dtype), embedded)
        output = self._model.base_model(
            inputs_embeds=embedded, use_cache=False, output_hidden_states=layer is not None, return_dict=True
        )
        last = output.last_hidden_state
        return States(last if layer is None else output.hidden_states[layer], last)

    def logits(self, last: torch.Tensor, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Score some rows of a head in given states: [B, S, D] by [K, D] to [B, S, K], in fp32."""
        product = functional.linear(last, rows.to(last.dtype), None if bias is None else bias.to(last.dtype))
        return product.float() * self._output_scale

    @torch.no_grad()
    def _probe(self, model_dir: Path) -> tuple[float, float]:
        """Find by what the model multiplies rows on their way in and out; Gemma, Granite and others do."""
        ids = torch.arange(min(_PROBED_TOKENS, len(self.input_rows)), device=self.device)[None]
        embedded = self._embedding(ids)
        plain = functional.embedding(ids, self.input_rows)
        into = _scale_between(plain, embedded, "input embedding", model_dir)
        last = self._model.base_model(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
        logits = self._model(input_ids=ids, use_cache=False).logits
        product = functional.linear(last, self.output_rows, self.output_bias)
        return into, _scale_between(product, logits, "output head", model_dir)


def _scale_between(plain: torch.Tensor, real: torch.Tensor, what: str, model_dir: Path) -> float:
    plain, real = plain.double(), real.double()
    size = float((plain * plain).sum())
    scale = float((plain * real).sum()) / size if size else 1.0
    if float((real - scale * plain).norm()) > _TOLERANCE * float(real.norm()):
        raise InputError(
            f"its {what} does more than scale rows, and new rows cannot be learned apart from it",
            path=model_dir,
            remedy="use --init mean or weighted",
        )
    return scale
