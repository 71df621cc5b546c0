"""Which weights a stage trains."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from colossal_llama2.errors import InputError


def freeze_all_but_embeddings(model: nn.Module) -> None:
    """Leave only the input embedding and the output head trainable: the first stage, which settles the new rows.

    Raises:
        InputError: the model has no input embedding that transformers can name.
    """
    kept = {id(p) for p in embedding_parameters(model)}
    if not kept:
        raise InputError(f"{type(model).__name__} names no embeddings", remedy="leave out --freeze_non_embeds_params")
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in kept)


def keep_base_rows(parameter: nn.Parameter, trained: range) -> None:
    """Let no gradient but that of some rows reach a parameter with a row a token; to be called before it is boosted.

    The other rows then stay as they are to the last bit, provided they do not decay: AdamW moves a weight whose moments
    and gradient are zero by zero. The gradient norm counts the trained rows alone. A hook of the tensor runs before
    those with which the plugins take its gradient away, so every plugin sees the same zeros.

    The optimizer still holds moments for the whole matrix, and each backward pass makes a second gradient matrix for a
    moment.

    Args:
        parameter: of shape (rows, ...). Who divides it later among tensor-parallel ranks leaves the number of the first
            row that is held in its attribute `first_row`.
        trained: the rows to train.
    """
    assert 0 <= trained.start <= trained.stop <= len(parameter)

    def only_trained(gradient: torch.Tensor) -> torch.Tensor:
        held_from = getattr(parameter, "first_row", 0)
        first, end = (min(max(row - held_from, 0), len(gradient)) for row in (trained.start, trained.stop))
        kept = torch.zeros_like(gradient)  # not a product with zero: an fp16 gradient that overflowed would be NaN
        kept[first:end] = gradient[first:end]
        return kept

    parameter.register_hook(only_trained)


def check_base_rows_kept(model: nn.Module) -> None:
    """Make sure, after boosting, that no parameter has lost the hook of `keep_base_rows` by being replaced."""
    held = [parameter for parameter in embedding_parameters(model) if parameter.requires_grad]
    if not all(parameter._backward_hooks for parameter in held):
        raise RuntimeError("a plugin replaced a parameter, and base rows would move")


def embedding_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of input embedding and output head, each once: all have one row a token."""
    return list({id(p): p for module in embedding_modules(model) for p in module.parameters()}.values())


def embedding_modules(model: nn.Module) -> list[nn.Module]:
    """Return the input embedding and, where there is one, the output head (the same weights when tied)."""
    finders = [getattr(model, name, None) for name in ("get_input_embeddings", "get_output_embeddings")]
    found = [find() for find in finders if callable(find)]
    return [module for module in found if isinstance(module, nn.Module)]


def decay_groups(
    model: nn.Module, weight_decay: float, decay_all: bool = False, never: Iterable[nn.Parameter] = ()
) -> list[dict[str, object]]:
    """Split the trainable parameters for the optimizer: matrices decay; norms, biases and embeddings do not.

    Rows of rare pieces receive a gradient now and then but would decay at every step; the same goes for a head tied to
    them. An untied output head is a matrix like the others.

    Args:
        model: the model, frozen parameters marked by `requires_grad`.
        weight_decay: what the decaying group gets.
        decay_all: let every trainable parameter decay.
        never: parameters that must not decay whatever they are.

    Returns:
        One or two groups, none of them empty, each parameter in exactly one.
    """
    find_embedding = getattr(model, "get_input_embeddings", None)
    embedding = find_embedding() if callable(find_embedding) else None
    embedded = {id(p) for p in embedding.parameters()} if isinstance(embedding, nn.Module) else set()
    exempt = {id(p) for p in never}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            decays = decay_all or (parameter.ndim > 1 and id(parameter) not in embedded)
            groups[decays and id(parameter) not in exempt].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0}
        for decays, parameters in groups.items()
        if parameters
    ]


def describe_trained(model: nn.Module) -> str:
    """Say what is trained, for the log and for telling one run's checkpoint from another's."""
    trained = [p for p in model.parameters() if p.requires_grad]
    total = sum(1 for _ in model.parameters())
    return f"{len(trained)} of {total} tensors, {sum(p.numel() for p in trained)} parameters"
