"""Give a model rows for the new tokens of an expanded tokenizer: see ``--help``."""

from colossal_llama2 import cli
from colossal_llama2.model.init_model import Settings, main

if __name__ == "__main__":
    cli.run(Settings, main)
