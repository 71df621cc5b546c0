"""What a quantised folder says of itself: quantization.json for programs, README.md for people."""

from __future__ import annotations

import importlib.metadata
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from colossal_llama2 import cli
from colossal_llama2.model.expanding import write_json
from colossal_llama2.model.inference_memory import Answering, is_rounded, predict_inference, weight_bytes
from colossal_llama2.model.model_shape import read_model_shape
from colossal_llama2.model.quantized import RECORD_FILE
from colossal_llama2.model.quantizing import LIBRARIES, VLLM_GROUP_SIZES, Outcome, Plan
from colossal_llama2.report.calibration import file_hash
from colossal_llama2.report.quantize_measures import Measured
from colossal_llama2.report.quantize_settings import QuantizeSettings

CARD_FILE: Final = "README.md"
SOURCE_CARD_FILE: Final = "README_source.md"
SETTINGS_FILE: Final = "settings.yaml"
PREDICTED_TOKENS: Final = 128
_RECORD_VERSION: Final = 1
_HOW: Final = {
    "int8": "every number of a linear layer rounded to the nearest of 8 bits, one scale a row",
    "int4-gptq": "linear layers rounded to 4 bits by GPTQ (arXiv 2210.17323), columns in order of their weight",
    "nf4": "linear layers in bitsandbytes' 4-bit NormalFloat, blocks of 64, scales quantised again",
}


@dataclass(frozen=True)
class Cost:
    """What quantising took: seconds, and the most bytes of the host and of the device (torch's own)."""

    seconds: float
    peak_memory: dict[str, int]


@dataclass(frozen=True)
class Made:
    """A quantised model: how it was made, and its figures before and after; `rows` is the calibration text's shape."""

    settings: QuantizeSettings
    plan: Plan
    outcome: Outcome
    cost: Cost
    before: Measured
    after: Measured
    rows: tuple[int, ...] | None

    @property
    def loss_percent(self) -> float | None:
        """By how much bits per byte grew."""
        if self.before.bits_per_byte is None or self.after.bits_per_byte is None:
            return None
        return 100 * (self.after.bits_per_byte / self.before.bits_per_byte - 1)


def write_record(made: Made, folder: Path) -> None:
    """Write quantization.json, the model card and the settings; the source's own card is kept beside them."""
    write_json(folder / RECORD_FILE, record(made))
    (folder / SETTINGS_FILE).write_text(cli.as_yaml(made.settings), encoding="utf-8")
    source_card = made.settings.model / CARD_FILE
    if source_card.is_file():
        shutil.copyfile(source_card, folder / SOURCE_CARD_FILE)
    (folder / CARD_FILE).write_text(_card(made, source_card.is_file()), encoding="utf-8")


def record(made: Made) -> dict[str, Any]:
    """Return everything as plain values; files by name and hash, so that the folder may be passed on."""
    settings = made.settings
    shape = read_model_shape(settings.model)
    predicted = {
        device: asdict(predict_inference(shape, _answering(made, on_gpu))) for device, on_gpu in _DEVICES.items()
    }
    return {
        "version": _RECORD_VERSION,
        "model": settings.model.resolve().name,
        "method": settings.method,
        "head_quantised": settings.quantize_head,
        "group_sizes": {str(size): count for size, count in sorted(made.outcome.group_sizes.items())},
        "matrices": made.outcome.matrices,
        "bits_per_weight": {
            "of_rounded_matrices": _rounded_bits(made),
            "of_the_model_before": 8 * made.before.weight_bytes / shape.numel,
            "of_the_model": 8 * made.after.weight_bytes / shape.numel,
        },
        "calibration": _calibration(made),
        "evaluation": _file(settings.evaluation),
        "before": asdict(made.before),
        "after": asdict(made.after),
        "bits_per_byte_growth_percent": made.loss_percent,
        "seconds": made.cost.seconds,
        "peak_memory_bytes": made.cost.peak_memory,
        "predicted_inference_bytes": {"tokens": PREDICTED_TOKENS, **predicted},
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", LIBRARIES[settings.method])
        },
    }


def lines(made: Made) -> list[str]:
    """Return what is printed at the end."""
    before, after = made.before, made.after
    shape = read_model_shape(made.settings.model)
    ratio = before.weight_bytes / after.weight_bytes
    bits = 8 * after.weight_bytes / shape.numel
    told = [
        f"size on disk   {_mib(before.weight_bytes)} -> {_mib(after.weight_bytes)} ({ratio:.2f} times smaller, "
        f"{bits:.2f} bits a weight, {_rounded_bits(made):.3f} in the {made.outcome.matrices} matrices rounded)",
        f"quantising     {made.cost.seconds:.1f} s, peak memory "
        + ", ".join(f"{_mib(size)} of the {place}" for place, size in made.cost.peak_memory.items()),
    ]
    if made.loss_percent is not None:
        told.append(
            f"bits per byte  {before.bits_per_byte:.4f} -> {after.bits_per_byte:.4f} ({made.loss_percent:+.2f}%)"
        )
    if before.tokens_per_second and after.tokens_per_second:
        speed = after.tokens_per_second / before.tokens_per_second
        told.append(
            f"tokens/s       {before.tokens_per_second:.1f} -> {after.tokens_per_second:.1f} ({speed:.2f} times)"
        )
    predicted = predict_inference(shape, _answering(made, on_gpu=True))
    told.append(
        f"inference      {_mib(predicted.total)} of a GPU predicted at {PREDICTED_TOKENS} tokens, "
        f"{_mib(predicted.context)} of it CUDA's own (an allowance)"
    )
    return [*told, f"quantised model in {made.settings.output}"]


def unusual_group_sizes(outcome: Outcome) -> list[int]:
    """Return the group sizes that vLLM's kernels do not take."""
    return sorted(size for size in outcome.group_sizes if size not in VLLM_GROUP_SIZES)


_DEVICES: Final = {"cpu": False, "cuda": True}


def _answering(made: Made, on_gpu: bool) -> Answering:
    plan = made.plan
    return Answering(plan.method, PREDICTED_TOKENS, group_size=plan.group_size, with_head=plan.with_head, on_gpu=on_gpu)


def _rounded_bits(made: Made) -> float:
    """Bits a number takes in the rounded matrices, scales included."""
    shape, asked = read_model_shape(made.settings.model), _answering(made, on_gpu=False)
    rounded = [parameter for parameter in shape.parameters if is_rounded(parameter, asked)]
    stored = sum(weight_bytes(parameter, shape, asked) for parameter in rounded)
    return 8 * stored / max(1, sum(parameter.numel for parameter in rounded))


def _calibration(made: Made) -> dict[str, Any] | None:
    if made.rows is None:
        return None
    of_file = _file(made.settings.calibration) or {}
    return {**of_file, "rows": made.rows[0], "tokens_of_a_row": made.rows[1], "seed": made.settings.seed}


def _file(path: Path | None) -> dict[str, Any] | None:
    return None if path is None else {"file": path.name, "sha256": file_hash(path)}


def _card(made: Made, has_source_card: bool) -> str:
    settings, values = made.settings, record(made)
    head = "rounded as well" if settings.quantize_head else "in its original precision"
    facts = [
        f"Method: {settings.method}: {_HOW[settings.method]}.",
        f"Output head {head}; input embedding and norms in their original precision.",
        f"Group sizes (columns: matrices): {values['group_sizes']}.",
        f"Size: {_mib(made.before.weight_bytes)} before, {_mib(made.after.weight_bytes)} after, "
        f"{values['bits_per_weight']['of_the_model']:.2f} bits a weight.",
    ]
    if values["calibration"]:
        facts.append("Calibration: " + ", ".join(f"{name} {value}" for name, value in values["calibration"].items()))
    if made.loss_percent is not None:
        facts.append(
            f"Bits per byte of {values['evaluation']['file']}, held out: {made.before.bits_per_byte:.4f} before, "
            f"{made.after.bits_per_byte:.4f} after ({made.loss_percent:+.2f}%)."
        )
    facts.append("Made with " + ", ".join(f"{name} {version}" for name, version in values["versions"].items()) + ".")
    listed = "\n".join(f"- {fact}" for fact in facts)
    source = f"\n\nThe card of the model it was made of is in {SOURCE_CARD_FILE}." if has_source_card else ""
    return (
        f"# {values['model']}, {settings.method}\n\nA quantised copy of {values['model']}. "
        f"`transformers.AutoModelForCausalLM.from_pretrained` loads it with {LIBRARIES[settings.method]} installed.\n\n"
        f"{listed}\n\nEverything in figures: {RECORD_FILE}.{source}\n"
    )


def _mib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
