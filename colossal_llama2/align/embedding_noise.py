"""NEFTune: uniform noise on the embeddings while a model learns (Jain et al., arXiv 2310.05914)."""

from __future__ import annotations

import itertools
import math
import zlib
from typing import Any

import torch

from colossal_llama2.engine.master_weights import boosted_module
from colossal_llama2.engine.session import Session


class EmbeddingNoise:
    """Adds noise to the output of a boosted model's input embedding, in training mode alone.

    The noise of a document is drawn from the run's seed, the number of the step and the document's own tokens: a run
    that is resumed draws what it would have drawn, ranks of one model draw alike, and it does not matter in which row,
    micro-batch or rank a document lies. Two equal documents of one step get the same noise.

    Args:
        session: the boosted model.
        alpha: the paper's; 5 to 15 there.
        seed: the run's.
    """

    def __init__(self, session: Session, alpha: float, seed: int) -> None:
        self._session, self._alpha, self._seed = session, alpha, seed
        self._bounds: list[int] = []

    def attach(self) -> None:
        """Hook into the model; where a pipeline's first stage is elsewhere, nothing comes by."""
        model: Any = boosted_module(self._session.model)
        decoder = getattr(model, model.base_model_prefix)
        decoder.register_forward_pre_hook(self._see_documents, with_kwargs=True)
        embedding = model.get_input_embeddings()
        if embedding is not None:
            embedding.register_forward_hook(self._add)

    def _see_documents(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._bounds = [0, *itertools.accumulate(kwargs["documents"].lengths)]

    def _add(self, module: Any, args: tuple[torch.Tensor, ...], embedded: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return embedded
        noise = document_noise(args[0], self._bounds, embedded, self._alpha, (self._seed, self._step))
        return embedded + noise

    @property
    def _step(self) -> int:
        return int(self._session.scheduler.last_epoch)


def document_noise(
    input_ids: torch.Tensor, bounds: list[int], embedded: torch.Tensor, alpha: float, seeds: tuple[int, ...]
) -> torch.Tensor:
    """Draw noise for packed rows: uniform in [-1, 1] times alpha / sqrt(L d), with L the document's own length.

    Args:
        input_ids: [B, S], whose documents decide the noise along with `seeds`.
        bounds: N + 1 bounds of the documents in the flattened B * S.
        embedded: [B, S, d], whose shape, dtype and device the noise gets.
        alpha: how much.
        seeds: integers.
    """
    width = embedded.shape[-1]
    noise = torch.empty(embedded.shape, dtype=torch.float32, device=embedded.device).view(-1, width)
    flat = input_ids.flatten().cpu().numpy()
    generator = torch.Generator(embedded.device)
    for begin, end in itertools.pairwise(bounds):
        content = f"{seeds}".encode() + flat[begin:end].tobytes()
        generator.manual_seed(zlib.crc32(content))
        largest = alpha / math.sqrt((end - begin) * width)
        noise[begin:end].uniform_(-largest, largest, generator=generator)
    return noise.view(embedded.shape).to(embedded.dtype)
