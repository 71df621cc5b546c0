"""Reading a model folder to score or continue text: weights, encoder and tokenizer that belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from colossal_llama2.errors import InputError
from colossal_llama2.model.adapter_files import check_base, put_on
from colossal_llama2.model.belonging import check_belongs
from colossal_llama2.model.quantized import loading_options, settle
from colossal_llama2.tokenizer.loading import Encoder, load_encoder, load_tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model ready for inference.

    Attributes:
        model: in evaluation mode, on `device`.
        encoder: text to ids, as the corpus was encoded.
        tokenizer: ids to text.
        device: where the model lies.
        context_length: longest sequence it takes, in tokens.
    """

    model: nn.Module
    encoder: Encoder
    tokenizer: Any
    device: torch.device
    context_length: int

    @property
    def document_start(self) -> int:
        """The token a document begins with: bos, or eos where there is no bos, as such models are trained.

        Raises:
            InputError: the tokenizer has neither.
        """
        start = self.encoder.bos_token_id
        start = self.encoder.eos_token_id if start is None else start
        if start is None:
            raise InputError(
                "the tokenizer has neither a bos nor an eos token", path=self.tokenizer.name_or_path, remedy="set one"
            )
        return start

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Tokens that end a text: the tokenizer's eos, and those that the model's own generation settings name."""
        own = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        named = [self.encoder.eos_token_id, *(own if isinstance(own, list) else [own])]
        return frozenset(int(index) for index in named if index is not None)


def load_for_inference(model_dir: Path, device: str = "auto", adapter_dir: Path | None = None) -> LoadedModel:
    """Load a model folder in the dtype it is stored in, quantised or not, with an adapter on it if one is named.

    Args:
        model_dir: a folder that `transformers` reads, its tokenizer inside; nothing is fetched, no code in it
            is run.
        device: ``cpu``, ``cuda``, ``cuda:1`` ..., or ``auto`` for CUDA where there is some.
        adapter_dir: a LoRA adapter in peft's format, trained on this model.

    Raises:
        InputError: no such model or device, a tokenizer or adapter that does not belong to the model, an adapter for
            a quantised one, or a format whose library is missing.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    chosen = choose_device(device)
    check_belongs(model_dir)
    options = loading_options(model_dir, chosen, adapter_dir)
    if adapter_dir is not None:
        check_base(adapter_dir, model_dir)
    disable_progress_bar()
    encoder, tokenizer = load_encoder(model_dir), load_tokenizer(model_dir)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype="auto", local_files_only=True, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot be loaded ({first_line})", path=model_dir) from None
    # `generate` fills what its caller leaves open from here: a folder's num_beams or min_length would work unseen.
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    if adapter_dir is not None:
        model = put_on(model, adapter_dir)
    settle(model, chosen)
    length = getattr(model.config, "max_position_embeddings", None) or 1 << 20
    return LoadedModel(model.eval().to(chosen), encoder, tokenizer, chosen, int(length))


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device that is there.

    Raises:
        InputError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}", remedy="write auto, cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"no device {name} here", remedy="use --device auto")
    return device
