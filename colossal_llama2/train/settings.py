"""The flags that all stages share, and those of pretraining: one field an option, its docstring the help."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from colossal_llama2.engine.plugins import PluginName, PluginSettings, Precision, SequenceMode
from colossal_llama2.model.fused_kernels import FusedKernels


@dataclass(frozen=True)
class ModelOptions:
    """What is trained."""

    pretrained: Path
    """Model folder to start from, its tokenizer inside."""
    load_checkpoint: str = ""
    """Checkpoint folder to resume in full, its `modeling` folder to take weights alone (the next stage), a finished
    `adapter` folder to go on with it, or `latest` for the newest whole checkpoint in --save_dir."""
    freeze_non_embeds_params: bool = False
    """Train the input embedding and the output head alone: the stage that settles new rows."""
    train_new_rows_only: bool = False
    """Train only the rows that the vocabulary was expanded by, in embedding and head: all other rows stay as they are
    to the last bit, and so does every other weight. With --lora_rank the adapter learns as well."""
    stop_when_flat: bool = False
    """End a stage that trains the embeddings alone when its loss has stopped falling, as if its steps were done; a line
    says so, with this flag or without."""
    use_grad_checkpoint: bool = False
    """Recompute activations in the backward pass instead of keeping them."""
    checkpoint_layers: int = 0
    """Recompute those of so many decoder layers alone (the first of every pipeline stage): less memory, more time."""
    activation_budget: Literal["auto"] | float | None = None
    """Recompute as few layers as bring what a device keeps for the backward pass below so many GiB, or, with auto, the
    whole plan below the device's memory; the log says how many."""
    use_flash_attn: bool = False
    """Use variable-length FlashAttention where it can run (CUDA, fp16 or bf16); the log says what was taken."""
    fused_kernels: FusedKernels = "auto"
    """Liger-Kernel's RMSNorm, rotary embedding, SwiGLU and loss, where it is installed and there is CUDA (auto)."""
    compile: bool = False
    """Compile every decoder layer: fewer passes over memory, minutes at the start. With zero2, zero2_cpu and ddp."""


@dataclass(frozen=True)
class LoraOptions:
    """Training small matrices beside a frozen model."""

    lora_rank: int = 0
    """Rank of the LoRA adapters; 0 trains the model itself."""
    lora_alpha: int | None = None
    """Adapters are scaled by alpha / rank (default: twice the rank)."""
    lora_dropout: float = 0.0
    """Share of an adapter's inputs dropped in training."""
    lora_targets: str = ""
    """Linear layers that get an adapter, comma-separated: q_proj,v_proj (default: all but the output head)."""
    lora_train_embeddings: Literal["auto", "yes", "no"] = "auto"
    """Train input embedding and output head in full beside the adapters; auto does so where the vocabulary of
    --pretrained was expanded (it holds an expansion.json)."""
    lora_merge: bool = False
    """Also write the finished model with the adapter merged, as SAVE_DIR/modeling."""

    @property
    def alpha(self) -> int:
        """Alpha as given, or twice the rank."""
        return 2 * self.lora_rank if self.lora_alpha is None else self.lora_alpha


@dataclass(frozen=True)
class DataOptions:
    """What it is trained on, and how long."""

    dataset: tuple[Path, ...]
    """Prepared corpora (or single part folders of one); bucket i is part i of every one of them."""
    num_epochs: int = 1
    """How often the corpus is gone through."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; the schedule ends there too."""
    micro_batch_size: Annotated[int, tyro.conf.arg(aliases=["--batch_size"])] = 1
    """Rows a rank computes at a time."""
    accumulation_steps: int = 1
    """Micro-batches a rank adds up before an optimizer step."""
    max_length: int = 4096
    """Longest row accepted, in tokens; a corpus prepared with longer rows is refused."""


@dataclass(frozen=True)
class OptimizerOptions:
    """How it learns."""

    lr: float = 3e-4
    """Peak learning rate; a cosine takes it down to a tenth."""
    warmup_steps: Annotated[int | None, tyro.conf.arg(aliases=["-s"])] = None
    """Steps of linear warm-up (default: 2.5% of the steps)."""
    weight_decay: Annotated[float, tyro.conf.arg(aliases=["-w"])] = 0.1
    """Decoupled weight decay of matrices; norms, biases and embeddings do not decay."""
    decay_all_params: bool = False
    """Let norms, biases and embeddings decay as well."""
    gradient_clipping: Annotated[float, tyro.conf.arg(aliases=["--grad_clip"])] = 1.0
    """Largest global gradient norm; 0 for no clipping."""
    adam_beta1: float = 0.9
    """AdamW's decay rate of the first moment."""
    adam_beta2: float = 0.95
    """AdamW's decay rate of the second moment."""
    adam_eps: float = 1e-8
    """AdamW's epsilon."""
    seed: int = 42
    """Decides the data order inside buckets, and dropout if the model has any."""


@dataclass(frozen=True)
class ParallelOptions:
    """How it is spread over the ranks."""

    plugin: PluginName = "zero2"
    """ColossalAI plugin: gemini shards weights, gradients and optimizer state, gemini_auto also moves them to host
    memory as need be, zero2 shards gradients and optimizer state, zero2_cpu keeps them in host memory, 3d divides
    tensors and layers as well, ddp replicates everything."""
    mixed_precision: Precision = "fp16"
    """What forward and backward compute in; master weights are fp32 throughout."""
    tp: int = 1
    """Ranks that divide every matrix (3d)."""
    pp: int = 1
    """Stages of a pipeline of layers (3d); --accumulation_steps micro-batches go through it, no fewer than stages."""
    pp_chunks: int = 1
    """Chunks of layers each pipeline stage holds (3d); more than one interleaves them, which shortens the idle time and
    asks for --accumulation_steps that --pp divides."""
    sp: int = 1
    """Ranks that divide every sequence (3d)."""
    sp_mode: SequenceMode = "all_to_all"
    """How they do: all_to_all takes ranks of its own and exchanges heads for sequence in attention; split_gather keeps
    the tensor-parallel ranks' norms and residuals divided, and asks for --sp equal to --tp."""
    zero: Annotated[int, tyro.conf.arg(aliases=["--zero_stage"])] = 1
    """ZeRO stage inside 3d: 0 replicates over data ranks, 1 shards the optimizer state, 2 the gradients too."""
    offload_fraction: float = 1.0
    """Share of master weights and moments that zero2_cpu keeps in host memory; the rest stays on the device."""
    float8: bool = False
    """Multiply in float8 in the decoder layers (compute capability 8.9 or more; zero2, ddp, 3d without --tp)."""
    emulate_float8: bool = False
    """Round like float8 on any machine and multiply in fp32: slow, to see what float8 does to a loss."""


@dataclass(frozen=True)
class OutputOptions:
    """What is written where."""

    save_dir: Path
    """Folder of the checkpoints and, at the end, of the finished model (`modeling`) or adapter (`adapter`)."""
    tensorboard_dir: Path | None = None
    """Folder of metrics.jsonl and the TensorBoard events (default: SAVE_DIR/run)."""
    config_file: Path | None = None
    """Where the resolved settings are saved as YAML, besides SAVE_DIR/settings.yaml; read back by --config."""
    save_interval: int = 1000
    """Steps between checkpoints; 0 writes none but the finished model."""
    keep_checkpoints: int = 0
    """How many of the newest checkpoints stay; older ones go when a newer one is whole. 0 keeps all."""
    async_save: bool = False
    """Copy the state to host memory and write it while training goes on. Takes 12 bytes a trained parameter there,
    divided by the number of ranks."""
    log_interval: int = 10
    """Steps between lines of progress where there is no terminal."""
    profile: int = 0
    """Steps to record, after 3 that warm up: a trace of every rank for Perfetto in SAVE_DIR/run/profile, and beside it
    a table of where the time went; 0 for none."""
    new_rows_interval: int | None = None
    """Steps between reports on the rows that the vocabulary was expanded by: norms, rows never updated, nearest old
    rows, loss on new tokens; 0 for none (default: 50 where --pretrained holds an expansion.json and its rows learn)."""
    overwrite: bool = False
    """Discard the checkpoints and the model that an earlier run left in --save_dir."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What the model is measured on while it learns."""

    eval_dataset: tuple[Path, ...] = ()
    """Prepared sets that are never learned from, a corpus's holdout/ say: their loss stands in metrics.jsonl as
    eval_loss."""
    eval_interval: int = 0
    """Steps between evaluations; 0 for one alone, at the end."""


@dataclass(frozen=True)
class StageSettings:
    """What every stage that learns from a prepared set is told; each has groups of its own besides."""

    model: ModelOptions
    data: DataOptions
    output: OutputOptions
    lora: LoraOptions = field(default_factory=LoraOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)

    @property
    def plugin_settings(self) -> PluginSettings:
        """What the engine needs to know of these settings."""
        options = self.parallel
        return PluginSettings(
            plugin=options.plugin,
            precision=options.mixed_precision,
            gradient_clipping=self.optimizer.gradient_clipping,
            tp=options.tp,
            pp=options.pp,
            sp=options.sp,
            sp_mode=options.sp_mode,
            pp_chunks=options.pp_chunks,
            zero=options.zero,
            offload_fraction=options.offload_fraction,
            float8="emulated" if options.emulate_float8 else "yes" if options.float8 else "no",
        )

    @property
    def run_dir(self) -> Path:
        """Folder of the metrics."""
        return self.output.tensorboard_dir or self.output.save_dir / "run"


@dataclass(frozen=True)
class TrainSettings(StageSettings):
    """Continue pretraining a model on a prepared corpus.

    Start it alone, or on several ranks with `torchrun` or `colossalai run`.
    """

    stage: Literal["pretrain"] = "pretrain"
    """What is done; each stage has flags of its own, which --stage NAME --help tells."""
