"""Answers written by vLLM, where it is installed and asked for; the weights are handed over before every rollout.

Not run by the project's tests: it needs a GPU and vLLM, and is written against vLLM's documented interface (``LLM``,
``SamplingParams``, ``TokensPrompt``, ``collective_rpc("reload_weights")``). vLLM computes with kernels of its own, so
its log-probabilities differ from those of training; PPO never learns from them: step 2 takes them anew, and
`sampling_gap` says how far they are apart. Draws are vLLM's own, seeded by prompt, and
not the same numbers as `rollouts` draws.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from colossal_llama2.align.rollouts import Answer, Prompt, Sampling
from colossal_llama2.align.sampling import uniform_numbers
from colossal_llama2.engine import ranks
from colossal_llama2.engine.checkpoint import save_model
from colossal_llama2.engine.session import Session
from colossal_llama2.errors import InputError

if TYPE_CHECKING:
    from colossal_llama2.align.ppo_settings import PpoSettings


def check_vllm(settings: PpoSettings) -> None:
    """Refuse vLLM where it cannot be had.

    Raises:
        InputError: it is not installed, there is no GPU, or the policy is not handed over as a whole model.
    """
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            "--rollout vllm, and vLLM is not installed", remedy="pip install vllm, or pass --rollout model"
        )
    if not torch.cuda.is_available():
        raise InputError("--rollout vllm needs a GPU, and there is none here", remedy="pass --rollout model")
    if settings.lora.lora_rank or settings.parallel.tp > 1:
        raise InputError(
            "--rollout vllm takes whole models: neither --lora_rank nor --tp", remedy="pass --rollout model"
        )


class VllmGenerator:
    """Writes answers with an engine of vLLM a rank, on the device that the rank trains on.

    Args:
        session: trains the policy.
        sampling: how answers are drawn.
        model_files_dir: configuration and tokenizer of the policy.
        memory_share: of the device's memory that the engine may take.
    """

    def __init__(self, session: Session, sampling: Sampling, model_files_dir: Path, memory_share: float = 0.3) -> None:
        self._session, self._sampling, self._files_dir = session, sampling, model_files_dir
        self._memory_share = memory_share
        self._folder = Path(ranks.texts_of_ranks(tempfile.mkdtemp(prefix="policy-") if ranks.is_first() else "")[0])
        self._engine: Any = None

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer this rank's prompts, in their order; every rank calls it at the same point."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        self._hand_over()
        sampling = self._sampling
        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=1.0,
                top_k=-1,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=sorted(sampling.end_token_ids),
                ignore_eos=True,  # the stop tokens say it all
                logprobs=0,  # that of the token drawn
                seed=int(uniform_numbers(1, *prompt.keys)[0] * 2**31),
            )
            for prompt in prompts
        ]
        asked = [TokensPrompt(prompt_token_ids=prompt.ids.tolist()) for prompt in prompts]
        outputs = self._engine.generate(asked, parameters, use_tqdm=False)
        return [self._answer(output.outputs[0]) for output in outputs]

    def _hand_over(self) -> None:
        """Give the engine the present weights, by way of a model folder in the working precision."""
        dtype = torch.float16 if self._session.settings.precision == "fp16" else torch.bfloat16
        save_model(self._session, self._folder / "model", self._files_dir, dtype)
        if self._engine is None:
            from vllm import LLM

            self._engine = LLM(
                model=str(self._folder / "model"),
                dtype=str(dtype).removeprefix("torch."),
                gpu_memory_utilization=self._memory_share,
                enforce_eager=True,
                logprobs_mode="processed_logprobs",  # after the temperature: of the distribution that was drawn from
            )
            return
        self._engine.collective_rpc("reload_weights")
        self._engine.reset_prefix_cache()

    def _answer(self, output: Any) -> Answer:
        ids = np.array(output.token_ids, dtype=np.int32)
        said = [entry[int(token)].logprob for token, entry in zip(ids, output.logprobs, strict=True)]
        return Answer(ids, np.array(said, dtype=np.float32), int(ids[-1]) in self._sampling.end_token_ids)
