"""Have an endpoint make conversations, instructions, preference scores or prompts: see `--help`."""

from __future__ import annotations

from colossal_llama2 import cli
from colossal_llama2.chat.generate_dataset import main
from colossal_llama2.chat.making_settings import GenerateDatasetSettings

if __name__ == "__main__":
    cli.run(GenerateDatasetSettings, main)
