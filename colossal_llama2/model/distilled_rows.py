"""From a model, two tokenizers and some text to distilled rows: the flags, the snippets, the run, what it came to."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from tqdm import tqdm

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.model.distilling import Distillation, NewRows, Plan, StepReport
from colossal_llama2.model.frozen_model import FrozenModel
from colossal_llama2.model.new_rows import RowSource
from colossal_llama2.model.snippets import OldTokens, Snippets, choose_snippets
from colossal_llama2.tokenizer.encoder import Encoder
from colossal_llama2.tokenizer.extension import Extension
from colossal_llama2.tokenizer.loading import load_encoder

_LINES = 20


@dataclass(frozen=True)
class DistillOptions:
    """How rows are distilled, with --init or --output_init distilled."""

    distill_corpus: tuple[Path, ...] = ()
    """Text that holds the new tokens: jsonl of pretraining records, or plain text."""
    distill_steps: int = 1000
    """Steps of distillation."""
    distill_minutes: float | None = None
    """End it after this many minutes, if steps are left; the rows then depend on how fast the machine is."""
    distill_batch_size: int = 16
    """Snippets a step."""
    distill_length: int = 128
    """Most old tokens of a snippet."""
    distill_snippets: int = 100
    """A snippet is of use if it holds a new token that stands in fewer than this many chosen before it."""
    distill_lr: float = 0.1
    """Step size, as a share of the spread of the base's rows."""
    distill_layer: int | None = None
    """Match the hidden states after this many layers (default: after the last one and its norm)."""
    distill_device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""


@dataclass(frozen=True)
class Start:
    """The model, and where the rows that are distilled begin.

    Attributes:
        model_dir: the base model.
        tokenizer_dir: the expanded tokenizer.
        extension: how the two tokenizers differ.
        inputs: makes the first rows of the input embedding.
        outputs: makes those of the output head, and of its bias.
        learn_inputs: whether rows of the input embedding are distilled, or stay as `inputs` makes them.
        learn_outputs: whether rows of the output head are learned.
        seed: decides the order of the snippets.
    """

    model_dir: Path
    tokenizer_dir: Path
    extension: Extension
    inputs: RowSource
    outputs: RowSource
    learn_inputs: bool
    learn_outputs: bool
    seed: int


def check_options(options: DistillOptions, wanted: bool) -> None:
    """Refuse numbers that cannot work, and flags that would do nothing.

    Raises:
        InputError: naming the flag.
    """
    if not wanted:
        for field in fields(DistillOptions):
            if getattr(options, field.name) != field.default:
                raise InputError(f"--{field.name} without --init distilled", remedy="leave one out, or pass both")
        return
    if not options.distill_corpus:
        raise InputError(
            "--init distilled without --distill_corpus", remedy="name jsonl or text files that hold the new tokens"
        )
    for path in options.distill_corpus:
        if not path.is_file():
            raise InputError("no such file", path=path, remedy="give jsonl or text files as --distill_corpus")
    for name in ("steps", "batch_size", "length", "snippets"):
        if getattr(options, f"distill_{name}") < 1:
            raise InputError(f"--distill_{name} is {getattr(options, f'distill_{name}')}", remedy="give 1 or more")
    if not options.distill_lr > 0 or (options.distill_minutes is not None and not options.distill_minutes > 0):
        raise InputError("--distill_lr and --distill_minutes must be above 0")


def distill(start: Start, options: DistillOptions) -> tuple[NewRows, list[str]]:
    """Distil.

    Returns:
        The rows, on the CPU; and lines that say what was done.

    Raises:
        InputError: the model cannot be used, or the text holds none of the new tokens.
    """
    encoder = load_encoder(start.tokenizer_dir)
    snippets = choose_snippets(
        options.distill_corpus, encoder, start.extension, options.distill_length, options.distill_snippets
    )
    model = FrozenModel(start.model_dir, options.distill_device)
    if options.distill_layer is not None and not 0 < options.distill_layer <= model.num_layers:
        raise InputError(f"--distill_layer is {options.distill_layer}", remedy=f"give 1 to {model.num_layers}")
    if model.context_length <= options.distill_length:
        raise InputError(
            f"--distill_length is {options.distill_length} and the model's context {model.context_length} tokens",
            remedy=f"give at most {model.context_length - 1}",
        )
    rows = _first_rows(model, start)
    plan = Plan(
        steps=options.distill_steps,
        seconds=None if options.distill_minutes is None else 60 * options.distill_minutes,
        batch_size=options.distill_batch_size,
        lr=options.distill_lr,
        layer=options.distill_layer,
        seed=start.seed,
    )
    run = Distillation(model, start.extension.num_base, rows, plan)
    cli.say(f"distilling   {len(snippets.rows)} snippets of {snippets.texts} texts, on {model.device}")
    reports = _followed(run.run(snippets, OldTokens(start.extension), _document_start(encoder, start)), plan)
    done = NewRows(
        rows.inputs.cpu(),
        rows.outputs.cpu(),
        None if rows.bias is None else rows.bias.cpu(),
        rows.learn_inputs,
        rows.learn_outputs,
    )
    return done, list(_account(reports, snippets, int(run.met.sum())))


def _first_rows(model: FrozenModel, start: Start) -> NewRows:
    num_base = start.extension.num_base

    def made(source: RowSource, base: torch.Tensor) -> torch.Tensor:
        return torch.cat(list(source(base[:num_base].cpu()))).float().to(model.device)

    inputs = made(start.inputs, model.input_rows)
    outputs = inputs if model.tied else made(start.outputs, model.output_rows)
    bias = None if model.output_bias is None else made(start.outputs, model.output_bias[:, None])[:, 0]
    return NewRows(inputs, outputs, bias, start.learn_inputs, start.learn_outputs)


def _document_start(encoder: Encoder, start: Start) -> int:
    token = encoder.bos_token_id if encoder.bos_token_id is not None else encoder.eos_token_id
    if token is None:
        raise InputError("the tokenizer has neither a bos nor an eos token", path=start.tokenizer_dir)
    return token


def _followed(reports: Iterable[StepReport], plan: Plan) -> list[StepReport]:
    """Show the steps as they come: a bar on a terminal, elsewhere a line now and then."""
    done: list[StepReport] = []
    on_terminal = sys.stderr.isatty()
    with tqdm(total=plan.steps, desc="distilling", disable=not on_terminal) as bar:
        for report in reports:
            if not on_terminal and (not done or int(done[-1].share * _LINES) != int(report.share * _LINES)):
                cli.say(f"distilling   step {report.step} of {plan.steps}, {_figures([report])}")
            done.append(report)
            bar.update()
            bar.set_postfix_str(_figures([report]), refresh=False)
    return done


def _figures(reports: list[StepReport]) -> str:
    """Say what some steps came to, on average."""
    distances = [report.distance for report in reports if report.distance is not None]
    losses = [report.loss for report in reports if report.loss is not None]
    parts = [f"distance {sum(distances) / len(distances):.4f}"] if distances else []
    return ", ".join(parts + ([f"loss {sum(losses) / len(losses):.4f}"] if losses else []))


def _account(reports: list[StepReport], snippets: Snippets, met: int) -> Iterable[str]:
    some = max(1, len(reports) // _LINES)
    yield f"distilled    {len(reports)} steps; {_figures(reports[:some])} -> {_figures(reports[-some:])}"
    total, present = len(snippets.occurrences), int((snippets.occurrences > 0).sum())
    yield f"             {met} of {total} new tokens met, {total - met} keep the row they started from"
    if met < present:
        yield f"             {present - met} of those stand in snippets that {len(reports)} steps did not come to"
