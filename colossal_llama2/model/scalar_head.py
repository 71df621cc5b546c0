"""A model that scores: the layers of a language model, and a head of one row in the place of the one for tokens.

It is stored as transformers stores a sequence classifier of one label (``LlamaForSequenceClassification``: the layers
under their names, the head as ``score.weight``, no bias), so that other tools read it. What runs here is another
forward pass: a value at every token of packed rows, in fp32. The score of a text is the value at its last token, found
by the documents' bounds and never by looking for padding. (transformers looks for the last token that is not the
padding token, which is another one where that is the end token too.)
"""

from __future__ import annotations

import json
from pathlib import Path
from types import MethodType
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from colossal_llama2.errors import InputError
from colossal_llama2.model import document_attention
from colossal_llama2.model.embedding_names import SCORE_HEAD, build_without_memory
from colossal_llama2.model.pretrained import check_attention, choose_attention
from colossal_llama2.model.quantized import refuse_quantized
from colossal_llama2.model.weights import find_weights

HEAD_WEIGHT: Final = f"{SCORE_HEAD}.weight"


class Valued(NamedTuple):
    """What the model returns.

    Attributes:
        values: [B, S] fp32, one a token.
    """

    values: torch.Tensor


def values(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Turn hidden states into a value a token: a critic's values, and at a text's last token its score.

    In fp32 whatever the layers compute in: bf16 has three digits, and pairs are told apart by small margins.

    Args:
        hidden: [B, S, d], behind the last norm.
        weight: [1, d].

    Returns:
        [B, S] fp32.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.float(), weight.float())[..., 0]


def scores(values: torch.Tensor, document_ends: torch.Tensor) -> torch.Tensor:
    """Take the score of each text: its value at its last real token, never an average.

    Args:
        values: [B, S].
        document_ends: [N] int64, where each text ends in the flattened B * S; see `Batch.document_ends`.

    Returns:
        [N].
    """
    return values.reshape(-1)[document_ends.to(values.device)]


def is_scorer(model_dir: Path) -> bool:
    """Tell a folder of a model that scores from one of a model that predicts tokens."""
    return HEAD_WEIGHT in find_weights(model_dir).locations()


def load_scorer(model_dir: Path, precision: str, use_flash_attn: bool = False, seed: int = 0) -> nn.Module:
    """Load a model that scores, on the CPU, with document attention; of a model without such a head, make one.

    A head that is made starts normal with standard deviation 1 / (d + 1) (Stiennon et al., arXiv 2009.01325, as
    InstructGPT does). Called with token ids, positions and the documents' bounds, as for training, it returns `Valued`.

    Args:
        model_dir: folder of a scorer, or of a causal language model whose layers it gets.
        precision: what it will compute in, which decides the attention kernel.
        use_flash_attn: ask for variable-length FlashAttention, taken where it can run.
        seed: decides a head that is made.

    Raises:
        InputError: the folder is not a model that transformers can make a scorer of, its head has several labels, or
            its layers would mix the documents of a row.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    refuse_quantized(model_dir, "cannot be trained")
    has_head = _check_head(model_dir)
    document_attention.register()
    name, _ = choose_attention(precision, use_flash_attn)
    logging.disable_progress_bar()
    spoken = logging.get_verbosity()
    logging.set_verbosity_error()  # that a head is missing and another is not used is what is meant
    try:
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            model_dir,
            num_labels=1,
            dtype="auto",
            attn_implementation=name,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot be loaded as a model that scores ({first_line})", path=model_dir) from None
    finally:
        logging.set_verbosity(spoken)
    check_attention(model, model_dir)
    model.config.use_cache = False
    if not has_head:
        start_head(model, seed)
    return give_values(model)


def start_head(model: Any, seed: int) -> None:
    """Draw the head anew, the same on every rank."""
    weight = model.get_submodule(SCORE_HEAD).weight
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(weight.shape, generator=generator) / (weight.shape[-1] + 1)
    with torch.no_grad():
        weight.copy_(drawn)


def give_values(model: Any) -> nn.Module:
    """Let a sequence classifier of transformers return `Valued` in the place of one pooled score a row."""

    def forward(self: Any, **inputs: Any) -> Valued:
        hidden = getattr(self, self.base_model_prefix)(**inputs).last_hidden_state
        return Valued(values(hidden, self.get_submodule(SCORE_HEAD).weight))

    model.forward = MethodType(forward, model)
    result: nn.Module = model
    return result


def scorer_config(model_dir: Path) -> str:
    """Return a model folder's ``config.json`` as that of a scorer with the same layers."""
    config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    kind = type(build_without_memory(model_dir, scores=True)).__name__
    config.update(architectures=[kind], id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    config.pop("num_labels", None)
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _check_head(model_dir: Path) -> bool:
    """Tell whether there is a head that scores.

    Raises:
        InputError: there is one of several labels.
    """
    locations = find_weights(model_dir).locations()
    if HEAD_WEIGHT not in locations:
        return False
    labels = locations[HEAD_WEIGHT][1][0]
    if labels != 1:
        raise InputError(
            f"is a classifier of {labels} labels, and a scorer has one",
            path=model_dir,
            remedy="name a reward model, or the language model that one is to be made of",
        )
    return True
