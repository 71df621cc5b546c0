"""How ColossalAI divides a model over ranks, made from the plan that transformers publishes for it.

ColossalAI's own policies bring a forward pass of their own for every model, written for transformers 4.51. Here
transformers' forward stays: tensor parallelism swaps the linears that ``config.base_model_tp_plan`` names, the pipeline
turns layers of other stages into nothing, sequence parallelism adds hooks. This file goes when ColossalAI's policies
run on transformers 5.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from colossal_llama2.engine import compat, sequence_parallel
from colossal_llama2.engine.parallel_plan import COLUMN, REPLICATED, ROW, styles

compat.install()

from colossalai.shardformer.layer import (  # noqa: E402
    Linear1D_Col,
    Linear1D_Row,
    VocabParallelEmbedding1D,
    VocabParallelLMHead1D,
)
from colossalai.shardformer.policies.base_policy import (  # noqa: E402
    ModulePolicyDescription,
    Policy,
    SubModuleReplacementDescription,
)


class ElsewhereLayer(nn.Module):
    """Stands for a layer or norm that another pipeline stage holds: no weights, so the others keep their names."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Hand the hidden states on."""
        return hidden_states


class PlanPolicy(Policy):
    """A policy for any causal language model that publishes a plan, with adapters in its layers or without."""

    def set_model(self, model: Any) -> None:
        """Take the model, and its part without the head."""
        self.model: Any = model
        self.base: Any = getattr(self.model, self.model.base_model_prefix)

    def config_sanity_check(self) -> None:
        """Nothing: `parallel_plan.check_model` has refused what cannot be divided, before any weight was loaded."""

    def preprocess(self) -> nn.Module:
        """Remember whether the head shares the embedding's weight, before anything is swapped."""
        head = self.model.get_output_embeddings()
        self.tied = head is not None and head.weight is self.model.get_input_embeddings().weight
        model: nn.Module = self.model  # what is returned is what gets divided
        return model

    def module_policy(self) -> dict[Any, ModulePolicyDescription]:
        """Name the modules that tensor parallelism replaces, and by what."""
        if not self.shard_config.enable_tensor_parallelism:
            return {}
        self.styles = styles(self.model)
        mode = "split_gather" if self.shard_config.sequence_parallelism_mode == "split_gather" else None
        replaced: list[tuple[str, Any, dict[str, Any]]] = []
        for name, module in self.model.named_modules():
            if module is self.model.get_input_embeddings():
                replaced.append((name, VocabParallelEmbedding1D, {"make_vocab_size_divisible_by": 1}))
            elif module is self.model.get_output_embeddings():
                kwargs = {"gather_output": False, "make_vocab_size_divisible_by": 1}
                replaced.append((name, VocabParallelLMHead1D, kwargs))
            else:
                replaced += _divided_linear(name, module, self.styles.get(name), mode)
        return {
            type(self.model): ModulePolicyDescription(
                sub_module_replacement=[
                    SubModuleReplacementDescription(suffix=n, target_module=t, kwargs=k) for n, t, k in replaced
                ]
            )
        }

    def stage_ranges(self) -> list[tuple[int, int]]:
        """Return the layers this rank holds, one range a chunk."""
        manager, layers = self.pipeline_stage_manager, len(self.base.layers)
        if manager is None:
            return [(0, layers)]
        found = manager.get_stage_index(manager.distribute_layers(layers))
        manager.stage_indices = [(int(a), int(b)) for a, b in (found if manager.is_interleave else [found])]
        return list(manager.stage_indices)  # the interleaved schedule reads them there

    def get_held_layers(self) -> list[nn.Module]:
        """List the modules whose weights this pipeline stage keeps."""
        manager = self.pipeline_stage_manager
        held = [layer for a, b in self.stage_ranges() for layer in self.base.layers[a:b]]
        held += [self.base.rotary_emb] if hasattr(self.base, "rotary_emb") else []
        if manager.is_first_stage(ignore_chunk=True):
            held.append(self.model.get_input_embeddings())
        if manager.is_last_stage(ignore_chunk=True):
            held += [self.base.norm, self.model.get_output_embeddings()]
        return held

    def get_shared_params(self) -> list[dict[int, torch.Tensor]]:
        """A tied head lies on the last stage and its embedding on the first: their gradients are added up."""
        manager = self.pipeline_stage_manager
        if manager is None or manager.num_stages == 1 or not self.tied:
            return []
        ends = (self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight)
        return [{0: ends[0], manager.num_stages - 1: ends[1]}]

    def postprocess(self) -> nn.Module:
        """Add what transformers' forward needs once modules are swapped and layers are elsewhere."""
        ranges = self.stage_ranges()
        chunks = [list(self.base.layers[a:b]) for a, b in ranges]
        if self.pipeline_stage_manager is not None:
            self._leave_out_other_stages(ranges)
        if self.shard_config.enable_tensor_parallelism:
            self._add_up_replicated_gradients()
            self._number_rows()
        if self.shard_config.enable_sequence_parallelism:
            self._divide_sequence(chunks)
        model: nn.Module = self.model
        return model

    def _leave_out_other_stages(self, ranges: list[tuple[int, int]]) -> None:
        manager, base = self.pipeline_stage_manager, self.base
        held = {number for a, b in ranges for number in range(a, b)}
        for number in range(len(base.layers)):
            if number not in held:
                base.layers[number] = ElsewhereLayer()
        if not manager.is_last_stage(ignore_chunk=True):
            base.norm = ElsewhereLayer()
        self.model.forward = MethodType(_stage_forward(manager, base, self.model.forward), self.model)

    def _add_up_replicated_gradients(self) -> None:
        """Weights held whole but applied to a rank's own heads (Qwen3's q_norm) see a part of the gradient."""
        group = self.shard_config.tensor_parallel_process_group
        for name, module in self.model.named_modules():
            if self.styles.get(name) == REPLICATED:
                for parameter in (p for p in module.parameters() if p.requires_grad):
                    parameter.register_hook(lambda gradient: _summed(gradient, group))

    def _number_rows(self) -> None:
        """Tell who looks after single rows of the vocabulary (`model.freezing.keep_base_rows`) which are here."""
        rank = dist.get_rank(self.shard_config.tensor_parallel_process_group)
        for module in (self.model.get_input_embeddings(), self.model.get_output_embeddings()):
            if isinstance(getattr(module, "weight", None), nn.Parameter):
                module.weight.first_row = rank * len(module.weight)

    def _divide_sequence(self, chunks: list[list[Any]]) -> None:
        group = self.shard_config.sequence_parallel_process_group
        for layers in chunks:
            sequence_parallel.split_between(layers[0], layers[-1], self.shard_config)
        layers = [layer for chunk in chunks for layer in chunk]
        if self.shard_config.sequence_parallelism_mode == "split_gather":
            linears = (name.removesuffix(".base_layer") for name, style in self.styles.items() if style == COLUMN)
            parents = {name.rpartition(".")[0] for name in linears}
            blocks = [module for name, module in self.model.named_modules() if name in parents]
            sequence_parallel.gather_before(blocks, group)
            sequence_parallel.mark_partial_norms(layers, blocks)
            for name, module in self.model.named_modules():
                if self.styles.get(name) == ROW and hasattr(module, "lora_B"):
                    sequence_parallel.mark_partial(module.lora_B)  # whole, and applied to a part of the sequence
        else:
            sequence_parallel.exchange_in_attention(self.model, layers, group)


def _divided_linear(
    name: str, module: Any, style: str | None, mode: str | None
) -> list[tuple[str, Any, dict[str, Any]]]:
    """Divide a linear by columns or rows; of one with an adapter around it, the factor on the divided side as well.

    With x A B added to x W: where W is divided by columns so is B, and x A is whole everywhere; where W is divided by
    rows so is A, and its result is added up before B.
    """
    if style == COLUMN:
        divided: Any = (Linear1D_Col, {})
    elif style == ROW:
        divided = (Linear1D_Row, {"seq_parallel_mode": mode})
    else:
        return []
    if not hasattr(module, "lora_A"):
        return [(name, *divided)]
    factors = module.lora_B if style == COLUMN else module.lora_A
    return [(f"{name}.{'lora_B' if style == COLUMN else 'lora_A'}.{adapter}", *divided) for adapter in factors]


def _stage_forward(manager: Any, base: Any, whole_forward: Any) -> Any:
    """Build the forward of one pipeline stage: its own layers, from token ids or from the stage before's hidden states.

    transformers makes masks and rotary embeddings anew on every stage. The last stage runs the model's own forward, so
    that whatever it does to the logits stays.
    """

    def forward(
        self: Any, input_ids: Any = None, hidden_states: Any = None, stage_index: Any = None, **kwargs: Any
    ) -> Any:
        given = {name: value for name, value in kwargs.items() if value is not None}
        given |= {"use_cache": False}
        given |= {"input_ids": input_ids} if manager.is_first_stage() else {"inputs_embeds": hidden_states}
        every_layer, every_norm = base.layers, base.norm
        if stage_index is not None:  # interleaved: of the chunks that lie here, this one
            first, last = stage_index
            base.layers = nn.ModuleList(every_layer[int(first) : int(last)])
        try:
            if manager.is_last_stage():
                return whole_forward(**given)
            base.norm = ElsewhereLayer()
            return {"hidden_states": base(**given).last_hidden_state}
        finally:
            base.layers, base.norm = every_layer, every_norm

    return forward


def _summed(gradient: torch.Tensor, group: Any) -> torch.Tensor:
    gradient = gradient.clone()
    dist.all_reduce(gradient, group=group)
    return gradient
