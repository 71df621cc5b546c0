"""Command: add an adapter into its base and write a model folder like any other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from colossal_llama2 import cli
from colossal_llama2.errors import InputError
from colossal_llama2.model.belonging import check_belongs
from colossal_llama2.model.init_model import show_progress
from colossal_llama2.model.merging import merge_adapter
from colossal_llama2.model.quantized import refuse_quantized
from colossal_llama2.model.weights import find_weights
from colossal_llama2.outputs import refuse_existing, whole_directory

_SETTINGS_FILE = "settings.yaml"


@dataclass(frozen=True)
class MergeSettings:
    """Merge a LoRA adapter into the model it was trained on, in the dtype that the model is stored in."""

    pretrained: Path
    """Model folder that the adapter was trained on."""
    adapter: Path
    """Adapter folder in peft's format: SAVE_DIR/adapter of a run, or a checkpoint's `modeling`."""
    output: Path
    """Folder to write the merged model and its tokenizer to."""
    overwrite: bool = False
    """Replace the output folder if it exists."""


def main(settings: MergeSettings) -> None:
    """Check that base and adapter belong together, write the merged model, and say what was changed."""
    base, adapter, output = settings.pretrained, settings.adapter, settings.output
    for source in (base, adapter):
        if not source.is_dir():
            raise InputError("no such folder", path=source)
        if source.resolve().is_relative_to(output.resolve()):
            raise InputError(f"the output would replace {source}", path=output, remedy="choose another --output")
    refuse_existing(output, settings.overwrite)
    check_belongs(base)
    refuse_quantized(base, "takes no adapter into its rounded weights")
    weights = find_weights(base)
    with whole_directory(output, overwrite=settings.overwrite) as work:
        with show_progress(weights) as progress:
            changed = merge_adapter(base, adapter, work, progress)
        (work / _SETTINGS_FILE).write_text(cli.as_yaml(settings), encoding="utf-8")
    cli.say(f"{changed} of {len(weights.locations())} tensors changed, merged model in {output}")


if __name__ == "__main__":
    cli.run(MergeSettings, main)
