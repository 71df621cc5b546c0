"""From the flags to the decoder layers whose activations are recomputed; the same for every stage."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

from torch import nn

from colossal_llama2 import cli
from colossal_llama2.engine import ranks
from colossal_llama2.engine.activation_budget import within_budget
from colossal_llama2.engine.plan_request import recomputed_layers
from colossal_llama2.errors import InputError
from colossal_llama2.model.model_shape import read_model_shape
from colossal_llama2.model.pretrained import recomputable_layers, recompute_activations
from colossal_llama2.train.plan import request_of_run
from colossal_llama2.train.settings import ModelOptions, StageSettings


def check_recomputation(options: ModelOptions) -> None:
    """Refuse flags that say two things.

    Raises:
        InputError: naming them.
    """
    layers, budget = options.checkpoint_layers, options.activation_budget
    asked = {
        "use_grad_checkpoint": options.use_grad_checkpoint,
        "checkpoint_layers": layers != 0,
        "activation_budget": budget is not None,
    }
    given = [f"--{name}" for name, said in asked.items() if said]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} both say how many layers are recomputed", remedy="leave one out")
    if layers < 0:
        raise InputError(f"--checkpoint_layers is {layers}", remedy="give a number of layers, or 0 for none")
    if isinstance(budget, float) and budget <= 0:
        raise InputError(f"--activation_budget is {budget}", remedy="give GiB, or auto")


def check_layers(wanted: int, model: nn.Module) -> int:
    """Return how many layers a model has that can be recomputed one by one.

    Raises:
        InputError: fewer than are wanted.
    """
    layers = len(recomputable_layers(model))
    if wanted > layers:
        raise InputError(
            f"--checkpoint_layers {wanted}, and {layers} layers that can be recomputed one by one",
            remedy="--use_grad_checkpoint recomputes all",
        )
    return layers


def recompute_as_asked(settings: StageSettings, model: nn.Module, max_length: int | None = None) -> None:
    """Let the layers be recomputed that the flags ask for; to be called before a plugin takes the model.

    Args:
        settings: the run's.
        model: on the CPU and whole, in adapters or without.
        max_length: of the rows that it trains on, in tokens; None where the planner cannot follow what is run.

    Raises:
        InputError: there are not as many layers, or the planner finds no number that fits.
    """
    options, parallel = settings.model, settings.parallel
    if options.use_grad_checkpoint:
        recompute_activations(model)
        return
    wanted, reason = options.checkpoint_layers, ""
    if options.activation_budget is not None:
        wanted, reason = _fewest(settings, max_length)
    if not wanted:
        if reason:
            cli.say(f"recomputed: no layer, {reason}")
        return
    layers = check_layers(wanted, model)
    chosen = recomputed_layers(wanted, layers, parallel.pp * parallel.pp_chunks)
    recompute_activations(model, set(chain.from_iterable(chosen)))
    cli.say(f"recomputed: {wanted} of {layers} layers{', ' if reason else ''}{reason}")


def _fewest(settings: StageSettings, max_length: int | None) -> tuple[int, str]:
    budget = settings.model.activation_budget
    if max_length is None:
        raise InputError(
            "--activation_budget: the planner does not follow this stage", remedy="pass --checkpoint_layers instead"
        )
    asked = request_of_run(settings, ranks.world_size())
    request = replace(asked, training=replace(asked.training, max_length=max_length))
    found = within_budget(read_model_shape(settings.model.pretrained), request, budget)
    reason = "the fewest that fit the device" if budget == "auto" else f"the fewest for {budget} GiB of activations"
    return found.training.checkpoint_layers, reason
