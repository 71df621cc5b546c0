from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from colossal_llama2.align.frozen import AdapterOff, FrozenModel
from colossal_llama2.align.judging import Judge, text_of
from colossal_llama2.align.rollouts import Answer
from colossal_llama2.dataset.prompt_set import PromptRow
from colossal_llama2.engine.session import Session
from colossal_llama2.model.lora import add_lora, plan_lora
from colossal_llama2.model.pretrained import load_for_training
from colossal_llama2.model.scalar_head import load_scorer
from colossal_llama2.tokenizer.loading import load_tokenizer

TEMPERATURE = 0.7
PROMPTS, ANSWERS = [[5, 6, 7], [8], [9, 10]], [[11, 12], [13, 14, 15, 2], [16]]


def rows() -> list[PromptRow]:
    return [PromptRow(np.array(ids, dtype=np.int32), f"prompt {ids}", {"ids": ids}) for ids in PROMPTS]


def answers() -> list[Answer]:
    return [
        Answer(np.array(ids, dtype=np.int32), np.zeros(len(ids), dtype=np.float32), ids[-1] == 2) for ids in ANSWERS
    ]


@pytest.fixture
def judge(boosted: Callable[..., Session], tiny_model_dir: Path) -> Judge:
    """Give a judge of fp32 models, two answers at a time."""
    return Judge(
        actor=boosted(),
        critic=boosted(model=load_scorer(tiny_model_dir, "fp32", seed=1)),
        reference=FrozenModel(load_for_training(tiny_model_dir, "fp32", False), torch.float32, offload=False),
        reward_model=FrozenModel(load_scorer(tiny_model_dir, "fp32", seed=2), torch.float32, offload=True),
        reward_function=lambda prompts, answers, records: [len(record["ids"]) for record in records],
        tokenizer=load_tokenizer(tiny_model_dir),
        temperature=TEMPERATURE,
        micro_batch_size=2,
    )


def alone(forward: Callable[..., Any], prompt: list[int], answer: list[int]) -> Any:
    """Run one sequence by itself."""
    bounds = torch.tensor([0, len(prompt) + len(answer)], dtype=torch.int32)
    ids = torch.tensor([[*prompt, *answer]])
    return forward(input_ids=ids, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, use_cache=False)


def test_each_answer_gets_what_it_would_get_alone(judge: Judge, tiny_model_dir: Path) -> None:
    said = judge.judge(rows(), answers())
    scorer = load_scorer(tiny_model_dir, "fp32", seed=2)
    assert len(said) == len(PROMPTS)
    for one, prompt, answer in zip(said, PROMPTS, ANSWERS, strict=True):
        begin = len(prompt) - 1
        logits = alone(judge.actor.infer, prompt, answer).logits[0, begin:-1] / TEMPERATURE
        expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(answer)[:, None])[:, 0]
        np.testing.assert_allclose(one.log_probs, expected.numpy(), atol=1e-5)
        np.testing.assert_allclose(one.reference_log_probs, one.log_probs, atol=1e-6)
        values = alone(judge.critic.infer, prompt, answer).values[0]
        np.testing.assert_allclose(one.values, values[begin:-1].numpy(), atol=1e-5)
        with torch.no_grad():
            score = alone(scorer, prompt, answer).values[0, -1]
        assert one.model_score == pytest.approx(float(score), abs=1e-5)
        assert one.function_score == len(prompt)


def test_an_answer_is_shown_without_its_end_token(tiny_model_dir: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_dir)
    ids = tokenizer("the quick fox", add_special_tokens=False)["input_ids"]
    log_probs = np.zeros(len(ids) + 1, dtype=np.float32)
    assert text_of(tokenizer, Answer(np.array([*ids, 2], dtype=np.int32), log_probs, True)).strip() == "the quick fox"


def test_an_adapter_that_is_off_adds_nothing_and_comes_back(
    boosted: Callable[..., Session], tiny_model_dir: Path
) -> None:
    model = load_for_training(tiny_model_dir, "fp32", False)
    plan = plan_lora(tiny_model_dir, 2, 4, 0.0, [], embeddings=False)
    add_lora(model, plan, seed=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_()
    base = load_for_training(tiny_model_dir, "fp32", False)
    before = alone(model, [1, 2], [3]).logits.detach()
    with torch.no_grad():
        expected = alone(base, [1, 2], [3]).logits
    session = boosted(model=model)
    with AdapterOff(session).ready() as forward:
        torch.testing.assert_close(alone(forward, [1, 2], [3]).logits, expected)
    torch.testing.assert_close(alone(session.infer, [1, 2], [3]).logits, before)
    assert all(parameter.requires_grad for parameter in trained)
