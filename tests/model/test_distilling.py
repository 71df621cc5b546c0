"""Distillation against gradients worked out another way, and what it must leave alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from colossal_llama2.errors import InputError
from colossal_llama2.model import distilling
from colossal_llama2.model.cuts import Cuts
from colossal_llama2.model.distilled_rows import DistillOptions, Start, distill
from colossal_llama2.model.distilling import Distillation, NewRows, Plan, lay_out
from colossal_llama2.model.frozen_model import FrozenModel
from colossal_llama2.model.new_rows import averages
from colossal_llama2.model.snippets import OldTokens, Snippets
from colossal_llama2.tokenizer.extension import Extension, read_extension
from colossal_llama2.tokenizer.loading import load_encoder

TEXTS = ["x今天天气很好 fox", "the fox jumps. 今天 天气", "今天 the 天气 is 天气", "天气很好，天气很好 今天"]


def rows_met(snippets: list[np.ndarray], extension: Extension) -> list[int]:
    """New rows, from 0, whose token stands in some snippet; some do, and some do not."""
    new = {int(token) - extension.num_base for row in snippets for token in row if token >= extension.num_base}
    assert 0 < len(new) < extension.num_tokens - extension.num_base
    return sorted(new)


@pytest.fixture
def extension(llama_tokenizer_dir: Path, expanded_tokenizer_dir: Path) -> Extension:
    return read_extension(llama_tokenizer_dir, expanded_tokenizer_dir)


@pytest.fixture
def snippets(expanded_tokenizer_dir: Path) -> list[np.ndarray]:
    encoder = load_encoder(expanded_tokenizer_dir)
    return [encoder.encode([text]).ids for text in TEXTS]


def first_rows(model: FrozenModel, extension: Extension, **learn: bool) -> NewRows:
    source = averages(Cuts.of(extension.base_tokens))
    inputs, outputs = (torch.cat(list(source(rows))) for rows in (model.input_rows, model.output_rows))
    return NewRows(
        inputs, inputs if model.tied else outputs, None, **{"learn_inputs": True, "learn_outputs": True, **learn}
    )


def as_read(rows: list[np.ndarray], extension: Extension) -> Snippets:
    num_new = extension.num_tokens - extension.num_base
    return Snippets(rows, np.zeros(len(rows), dtype=np.int64), np.zeros(num_new, dtype=np.int64), len(rows))


PLAN = Plan(steps=30, seconds=None, batch_size=4, lr=0.05, layer=None, seed=0)


def test_layout_puts_each_token_beside_its_last_old_one(extension: Extension, snippets: list[np.ndarray]) -> None:
    old = OldTokens(extension)
    batch = lay_out(snippets, old, extension.num_base, bos=1)
    compared = 0
    for index, row in enumerate(snippets):
        length = len(row) + 1
        assert batch.new[index, :length].tolist() == [1, *row.tolist()]
        assert batch.inside[index].sum() == length
        written, _ = old.of(row)
        assert batch.old[index, : len(written) + 1].tolist() == [1, *written.tolist()]
        first_new = 1 + int((row >= extension.num_base).argmax())
        assert batch.counted[index].nonzero()[:, 0].tolist() == list(range(first_new, length))
        assert batch.places[index, 0] == 0
        for place, token in enumerate(row, 1):
            compared += 1
            last = batch.old[index, batch.places[index, place]].item()
            assert last == token if token < extension.num_base else last == old.of(row[place - 1 : place])[0][-1]
        assert batch.places[index, length - 1] == len(written)
    assert compared > 20


def test_gradients_are_those_of_a_model_with_longer_matrices(
    make_model: Callable[..., Path],
    extension: Extension,
    snippets: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One step, its gradients caught, against autograd through a model that transformers itself made longer."""
    folder = make_model()
    model = FrozenModel(folder, "cpu")
    rows = first_rows(model, extension)
    caught: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(self: object, which: torch.Tensor, gradient: torch.Tensor, lr: float) -> None:
        caught.append((which, gradient))

    monkeypatch.setattr(distilling.RowAdam, "step", keep)
    run = Distillation(model, extension.num_base, rows, PLAN)
    batch = lay_out(snippets, OldTokens(extension), extension.num_base, bos=1)
    distance, loss = run._step(batch, 1.0)

    longer = AutoModelForCausalLM.from_pretrained(folder)
    longer.resize_token_embeddings(extension.num_tokens, mean_resizing=False)
    with torch.no_grad():
        longer.get_input_embeddings().weight[extension.num_base :] = rows.inputs
        longer.get_output_embeddings().weight[extension.num_base :] = rows.outputs
        teacher = longer(batch.old, output_hidden_states=True).hidden_states[-1]
    student = longer(batch.new, output_hidden_states=True)
    squares, count, wanted = torch.zeros(()), 0, []
    for index in range(len(snippets)):
        for place in batch.counted[index].nonzero()[:, 0].tolist():
            target = teacher[index, batch.places[index, place]]
            wanted.append(target)
            squares = squares + (student.hidden_states[-1][index, place] - target).square().sum()
            count += target.numel()
    error = squares / count
    (expected_inputs,) = torch.autograd.grad(error, longer.get_input_embeddings().weight, retain_graph=True)
    labels = torch.where(batch.inside, batch.new, -100)[:, 1:].reshape(-1)
    entropy = torch.nn.functional.cross_entropy(student.logits[:, :-1].reshape(len(labels), -1), labels)
    (expected_outputs,) = torch.autograd.grad(entropy, longer.get_output_embeddings().weight)

    (which, inputs), (met, outputs) = caught
    assert distance == pytest.approx(float((error / torch.stack(wanted).var(correction=0)).detach()), rel=1e-4)
    assert loss == pytest.approx(float(entropy.detach()), rel=1e-5)
    assert which.tolist() == met.tolist() == rows_met(snippets, extension)
    assert torch.allclose(inputs, expected_inputs[extension.num_base :][which], atol=1e-6, rtol=1e-4)
    assert torch.allclose(outputs, expected_outputs[extension.num_base :][met], atol=1e-6, rtol=1e-4)
    assert inputs.abs().max() > 1e-4


@pytest.mark.parametrize("layer", [None, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_come_closer_and_nothing_else_moves(
    layer: int | None,
    dtype: torch.dtype,
    make_model: Callable[..., Path],
    extension: Extension,
    snippets: list[np.ndarray],
) -> None:
    model = FrozenModel(make_model(dtype=dtype), "cpu")
    before = {name: tensor.clone() for name, tensor in model._model.state_dict().items()}
    rows = first_rows(model, extension)
    start = rows.inputs.clone(), rows.outputs.clone()
    plan = Plan(**{**vars(PLAN), "layer": layer})
    reports = list(
        Distillation(model, extension.num_base, rows, plan).run(as_read(snippets, extension), OldTokens(extension), 1)
    )
    assert [report.step for report in reports] == list(range(1, 31))
    distances, losses = [r.distance or 0.0 for r in reports], [r.loss or 0.0 for r in reports]
    assert sum(distances[-5:]) < 0.9 * sum(distances[:5])
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model._model.state_dict().items())
    for now, then in zip((rows.inputs, rows.outputs), start, strict=True):
        # what no text holds keeps its row, bit for bit
        assert (now != then).any(1).nonzero()[:, 0].tolist() == rows_met(snippets, extension)
        assert now.dtype == torch.float32


def test_what_is_not_to_learn_stays(
    make_model: Callable[..., Path], extension: Extension, snippets: list[np.ndarray]
) -> None:
    model = FrozenModel(make_model(), "cpu")
    for learn in ("learn_inputs", "learn_outputs"):
        rows = first_rows(model, extension, **{learn: False})
        start = rows.inputs.clone(), rows.outputs.clone()
        reports = list(
            Distillation(model, extension.num_base, rows, PLAN).run(
                as_read(snippets, extension), OldTokens(extension), 1
            )
        )
        still = [torch.equal(rows.inputs, start[0]), torch.equal(rows.outputs, start[1])]
        assert still == ([True, False] if learn == "learn_inputs" else [False, True])
        assert (reports[0].distance is None) == (learn == "learn_inputs")
        assert (reports[0].loss is None) == (learn == "learn_outputs")


def test_steps_and_time_end_it(
    make_model: Callable[..., Path],
    extension: Extension,
    snippets: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = FrozenModel(make_model(), "cpu")
    clock = iter(range(1000))
    monkeypatch.setattr(distilling.time, "monotonic", lambda: float(next(clock)))
    plan = Plan(**{**vars(PLAN), "seconds": 10.0, "steps": 500})
    rows = first_rows(model, extension)
    reports = list(
        Distillation(model, extension.num_base, rows, plan).run(as_read(snippets, extension), OldTokens(extension), 1)
    )
    assert [report.share for report in reports] == [i / 10 for i in range(1, 10)]


def test_what_cannot_be_asked_for(
    make_model: Callable[..., Path], extension: Extension, expanded_tokenizer_dir: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"source": "", "target": TEXTS[0]}) + "\n")
    source = averages(Cuts.of(extension.base_tokens))
    start = Start(make_model(), expanded_tokenizer_dir, extension, source, source, True, True, 0)
    with pytest.raises(InputError, match="--distill_layer is 3; give 1 to 2"):
        distill(start, DistillOptions((text,), distill_layer=3, distill_length=20))
    with pytest.raises(InputError, match="the model's context 64 tokens; give at most 63"):
        distill(start, DistillOptions((text,), distill_length=64))
