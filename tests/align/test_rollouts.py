from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from colossal_llama2.align.rollouts import Answer, ModuleGenerator, Prompt, Sampling
from colossal_llama2.engine.session import Session

ENDS = frozenset(range(2, 66))  # a tenth of the vocabulary, so that a random model ends some answers
SAMPLING = Sampling(max_new_tokens=12, temperature=0.8, end_token_ids=ENDS, batch_size=8)


def prompts_of(*lengths: int) -> list[Prompt]:
    random = np.random.default_rng(5)
    return [
        Prompt(random.integers(66, 640, length).astype(np.int32), (1, number)) for number, length in enumerate(lengths)
    ]


def fresh_log_probs(session: Session, prompt: Prompt, answer: Answer, temperature: float) -> torch.Tensor:
    """Take the answer's log-probabilities from one pass over the whole sequence, as training attends."""
    ids = torch.from_numpy(np.concatenate([prompt.ids, answer.ids])).long()[None]
    bounds = torch.tensor([0, ids.shape[1]], dtype=torch.int32)
    output = session.infer(input_ids=ids, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, use_cache=False)
    before = slice(len(prompt.ids) - 1, ids.shape[1] - 1)
    log_probs = torch.log_softmax(output.logits[0, before].float() / temperature, dim=-1)
    return log_probs.gather(-1, ids[0, len(prompt.ids) :, None])[:, 0]


@pytest.mark.parametrize(
    ("plugin", "precision", "tolerance"),
    [("zero2", "fp32", 1e-4), ("ddp", "fp32", 1e-4), ("zero2", "bf16", 0.15), ("gemini", "bf16", 0.15)],
)
def test_log_probabilities_are_those_of_a_fresh_pass(
    boosted: Callable[..., Session], plugin: str, precision: str, tolerance: float
) -> None:
    session = boosted(plugin, precision)
    prompts = prompts_of(3, 9, 5, 30, 1, 4)
    answers = ModuleGenerator(session, SAMPLING).answer(prompts)
    assert len(answers) == len(prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        fresh = fresh_log_probs(session, prompt, answer, SAMPLING.temperature)
        assert answer.log_probs.dtype == np.float32
        np.testing.assert_allclose(answer.log_probs, fresh.numpy(), atol=tolerance)


def test_answers_stop_at_the_end_token_and_say_so(boosted: Callable[..., Session]) -> None:
    answers = ModuleGenerator(boosted(), SAMPLING).answer(prompts_of(*[4] * 16))
    assert {answer.ended for answer in answers} == {True, False}
    for answer in answers:
        ends = [int(token) in ENDS for token in answer.ids]
        assert answer.ended == ends[-1]
        assert not any(ends[:-1])
        assert answer.ended or len(answer.ids) == SAMPLING.max_new_tokens


def test_company_does_not_change_an_answer(boosted: Callable[..., Session]) -> None:
    session = boosted()
    prompts = prompts_of(3, 9, 5, 30, 1, 4)
    together = ModuleGenerator(session, SAMPLING).answer(prompts)
    for prompt, expected in zip(prompts, together, strict=True):
        alone = ModuleGenerator(session, SAMPLING).answer([prompt])[0]
        assert alone.ids.tolist() == expected.ids.tolist()
    other = ModuleGenerator(session, SAMPLING).answer([Prompt(prompt.ids, (2, *prompt.keys)) for prompt in prompts])
    assert [answer.ids.tolist() for answer in other] != [answer.ids.tolist() for answer in together]


def test_the_model_trains_as_before_afterwards(boosted: Callable[..., Session]) -> None:
    session = boosted()
    attention = session.model.unwrap().config._attn_implementation
    ModuleGenerator(session, SAMPLING).answer(prompts_of(3, 4))
    assert session.model.unwrap().config._attn_implementation == attention
    assert session.model.training
