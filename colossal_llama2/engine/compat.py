"""Every departure from stock ColossalAI 0.5.0, one function each: why it is needed and when it can go.

`install` must run before anything else imports ``colossalai``. It refuses any other version, and each patch first
checks that what it replaces is still there, so that a new ColossalAI fails loudly instead of being patched blindly.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import types
import warnings
from typing import Any

import torch
import torch.distributed as dist

from colossal_llama2.errors import InputError

SUPPORTED_VERSION = "0.5.0"
_installed = False


def install() -> None:
    """Make ColossalAI usable on this torch and this device; safe to call again.

    Raises:
        InputError: ColossalAI is missing, or is another version than the one these patches were written for.
    """
    global _installed  # noqa: PLW0603  the patches are process-wide by nature
    if _installed:
        return
    _check_version()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside ColossalAI that no user of ours can act on
        _patch_torch_without_hccl()
        _import_with_stubs()
        _patch_fp16_growth()
        _patch_padded_vocabulary()
        _patch_stages_without_gradients()
        _patch_ddp_inside_3d()
        _patch_zero_update()
        if not torch.cuda.is_available():
            _use_cpu_accelerator()
            _patch_zero_on_cpu()
            _patch_gemini_on_cpu()
    _speak_only_of_trouble()
    _installed = True


def _check_version() -> None:
    try:
        version = importlib.metadata.version("colossalai")
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            "ColossalAI is not installed", remedy="pip install --no-deps -r requirements-engine.txt"
        ) from None
    if version != SUPPORTED_VERSION:
        raise InputError(
            f"ColossalAI {version} is installed, and this engine was written for {SUPPORTED_VERSION}",
            remedy=f"pip install --no-deps colossalai=={SUPPORTED_VERSION}",
        )


def _must_have(owner: Any, name: str) -> Any:
    """Return `owner.name`; its absence means that ColossalAI changed under a patch."""
    if not hasattr(owner, name):
        raise RuntimeError(
            f"ColossalAI has no {owner!r}.{name} any more: the patch in engine/compat.py must be revised"
        )
    return getattr(owner, name)


def _patch_torch_without_hccl() -> None:
    """pipeline/p2p.py:159 asks torch for an Ascend backend that no stock torch has; goes when that line does."""
    if not hasattr(dist, "is_hccl_available"):
        dist.is_hccl_available = lambda: False  # type: ignore[attr-defined]
    backend: Any = dist.distributed_c10d.Backend
    if not hasattr(backend, "HCCL"):
        backend.HCCL = "hccl"


def _import_with_stubs() -> None:
    """nn/optimizer imports galore_torch and bitsandbytes for optimizers unused here; goes when those imports are lazy.

    The stubs are taken out again, so that peft's own look for bitsandbytes is not misled.
    """
    wanted = {
        "galore_torch": ("GaLoreAdafactor", "GaLoreAdamW"),
        "bitsandbytes": (),
        "bitsandbytes.optim": (),
        "bitsandbytes.optim.optimizer": ("Optimizer2State",),
    }
    stubs = [name for name in wanted if importlib.util.find_spec(name.partition(".")[0]) is None]
    for name in stubs:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        for attribute in wanted[name]:
            setattr(module, attribute, type(attribute, (), {}))
        sys.modules[name] = module
    try:
        import colossalai.booster.plugin
        import colossalai.nn.optimizer  # noqa: F401
    finally:
        for name in stubs:
            sys.modules.pop(name, None)


def _speak_only_of_trouble() -> None:
    """ColossalAI narrates every save on standard output, and uses torch calls that torch warns about.

    Neither is for our users to act on; goes when it logs to a logger that can be configured from outside.
    """
    from colossalai.logging import get_dist_logger

    get_dist_logger().set_level("WARNING")
    warnings.filterwarnings("ignore", module=r"colossalai\.")
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)


def _patch_fp16_growth() -> None:
    """mixed_precision_mixin/fp16.py updates the loss scale before the gradients are divided by it.

    So the step on which the scale doubles would halve its gradients. The patch divides by the scale of the backward
    pass; goes when `get_grad_div_scale` does the same.
    """
    from colossalai.amp.naive_amp.mixed_precision_mixin.fp16 import FP16MixedPrecisionMixin

    pre_backward = _must_have(FP16MixedPrecisionMixin, "pre_backward")
    pre_backward_by_grad = _must_have(FP16MixedPrecisionMixin, "pre_backward_by_grad")
    div_scale = _must_have(FP16MixedPrecisionMixin, "get_grad_div_scale")

    def remember_scale(self: Any, loss: torch.Tensor) -> torch.Tensor:
        self.backward_scale = self.loss_scale
        return pre_backward(self, loss)

    def remember_scale_of_stage(self: Any, tensor: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        self.backward_scale = self.loss_scale  # all but the last stage of a pipeline
        return pre_backward_by_grad(self, tensor, grad)

    def divide_by_it(self: Any) -> float:
        current = div_scale(self)
        return getattr(self, "backward_scale", current)

    FP16MixedPrecisionMixin.pre_backward = remember_scale
    FP16MixedPrecisionMixin.pre_backward_by_grad = remember_scale_of_stage
    FP16MixedPrecisionMixin.get_grad_div_scale = divide_by_it


def _patch_padded_vocabulary() -> None:
    """checkpoint_io/utils.py:128 asserts that tensor-parallel shards add up to the whole, which padded ones exceed.

    So the moments of a vocabulary that the ranks do not divide could not be saved. Both callers pad and unpad the
    dimension that is named here; goes when the assertion does.
    """
    from colossalai.checkpoint_io import hybrid_parallel_checkpoint_io

    _must_have(hybrid_parallel_checkpoint_io, "search_tp_partition_dim")

    def divided_dimension(shard: torch.Size, whole: torch.Size, tp_size: int) -> int | None:
        return next((dim for dim, length in enumerate(whole) if length > shard[dim]), None)

    hybrid_parallel_checkpoint_io.search_tp_partition_dim = divided_dimension


def _patch_stages_without_gradients() -> None:
    """booster/plugin/hybrid_parallel_plugin.py: a pipeline stage that trains nothing leaves the norm's all-reduces out.

    The other stages then wait for it for ever (a pipeline of three, of which only the embeddings learn). The patch lets
    it take part with zero; goes when `_compute_grad_norm` does not return early.
    """
    from colossalai.booster.plugin import hybrid_parallel_plugin as plugin

    def taking_part(compute: Any) -> Any:
        def norm(self: Any, *args: Any, **kwargs: Any) -> float:
            gradients = kwargs.get("gradients", args[-1] if args else None)
            if gradients:
                return float(compute(self, *args, **kwargs))
            squares = torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu")
            for group in (kwargs.get("dp_pg"), self.tp_pg, self.pp_pg):
                if group is not None and dist.get_world_size(group) > 1:
                    dist.all_reduce(squares, group=group)
            return float(squares) ** 0.5

        return norm

    for name in ("HybridParallelNaiveOptimizer", "HybridParallelAMPOptimizer", "HybridParallelZeroOptimizer"):
        owner = _must_have(plugin, name)
        owner._compute_grad_norm = taking_part(_must_have(owner, "_compute_grad_norm"))


def _patch_ddp_inside_3d() -> None:
    """booster/plugin/hybrid_parallel_plugin.py wraps the model in torch's DDP where there is neither pipeline nor ZeRO.

    DDP hooks on to each weight's gradient accumulator, and torch makes a new one when a weight changes its dtype, as it
    does for a save from the masters: then nothing is averaged any more. `Session` averages once a step instead, as
    the plugin does in a pipeline. Goes when checkpoints of 3d are written without changing the weights' dtype.
    """
    from colossalai.booster.plugin import hybrid_parallel_plugin as plugin

    class HybridParallelModule(_must_have(plugin, "HybridParallelModule")):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            assert "use_ddp" in kwargs, "ColossalAI passes it by name"
            super().__init__(*args, **{**kwargs, "use_ddp": False})

    plugin.HybridParallelModule = HybridParallelModule


def _patch_zero_update() -> None:
    """low_level_optim.py:297-715 costs more than the arithmetic: a copy of all gradients in fp32, a wait for the device
    to read their norm, and a way through buffers for ranks that are not there.

    `streamed_update`, `device_norm` and `lone_rank` come to the same numbers; goes when ColossalAI does without.
    """
    from colossalai.zero.low_level.low_level_optim import LowLevelZeroOptimizer as Zero

    from colossal_llama2.engine.device_norm import clip_by_norm, group_norm
    from colossal_llama2.engine.lone_rank import keeping_gradients
    from colossal_llama2.engine.streamed_update import step_in_pieces

    for name in ("step", "_compute_grad_norm", "_unscale_and_clip_grads"):
        _must_have(Zero, name)
    Zero.step, Zero._compute_grad_norm, Zero._unscale_and_clip_grads = step_in_pieces, group_norm, clip_by_norm
    Zero._add_to_bucket = keeping_gradients(_must_have(Zero, "_add_to_bucket"))


def _use_cpu_accelerator() -> None:
    """accelerator/cpu_accelerator.py raises for about 20 methods; goes when it implements them."""
    from colossalai.accelerator import set_accelerator

    from colossal_llama2.engine.accelerator import cpu_accelerator

    set_accelerator(cpu_accelerator())


def _patch_zero_on_cpu() -> None:
    """low_level_optim.py:254 and :343 admit CUDA and NPU only; goes when the assertion lets a CPU through.

    The dtype half of the check is kept. `record_stream` guards memory reuse across CUDA streams and has no CPU kernel.
    """
    from colossalai.zero.low_level import low_level_optim

    _must_have(low_level_optim.LowLevelZeroOptimizer, "_sanity_checks")

    def same_dtype(self: Any) -> None:
        for group in self.optim.param_groups:
            for parameter in group["params"]:
                assert parameter.dtype == self._dtype, (parameter.dtype, self._dtype)

    low_level_optim.LowLevelZeroOptimizer._sanity_checks = same_dtype
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[assignment,method-assign]


def _patch_gemini_on_cpu() -> None:
    """Gemini tells accelerator memory from host memory by the device's name, which cannot work when both are the CPU.

    Here there is one tier: a chunk is always "on the accelerator", nothing moves, nothing is pinned, and the readings
    that steer `gemini_auto` are those of the host. Goes when gemini/chunk/chunk.py asks the accelerator instead.
    """
    import os

    import psutil
    from colossalai.legacy.utils import memory
    from colossalai.zero.gemini.chunk.chunk import Chunk
    from colossalai.zero.gemini.memory_tracer.memory_monitor import SyncCudaMemoryMonitor

    init = _must_have(Chunk, "__init__")
    for owner, name in ((Chunk, "device_type"), (Chunk, "shard_move"), (memory, "colo_device_memory_capacity")):
        _must_have(owner, name)

    def init_unpinned(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs["pin_memory"] = False
        init(self, *args, **kwargs)
        self.shard_device = torch.device("cuda")  # a tag: close_chunk() reads its type

    def finish(self: Any) -> int:
        self.time_stamps.append(0.0)
        return int(psutil.Process().memory_info().rss)

    capacity = psutil.virtual_memory().total / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    Chunk.__init__ = init_unpinned
    Chunk.device_type = property(lambda self: "cuda")
    Chunk.shard_move = lambda self, *args, **kwargs: None
    memory.colo_device_memory_capacity = lambda device: capacity
    SyncCudaMemoryMonitor.start = lambda self: None
    SyncCudaMemoryMonitor.finish = finish
