"""Prepare conversations, preferences and prompts for alignment: see `--help`."""

from __future__ import annotations

from colossal_llama2 import cli
from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings, main

if __name__ == "__main__":
    cli.run(PrepareSetSettings, main)
