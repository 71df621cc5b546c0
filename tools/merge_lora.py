"""Merge a LoRA adapter into its base model: see ``--help``."""

from colossal_llama2 import cli
from colossal_llama2.model.merge_lora import MergeSettings, main

if __name__ == "__main__":
    cli.run(MergeSettings, main)
