"""Expand a SentencePiece BPE tokenizer by a list of pieces: see ``--help``."""

from colossal_llama2 import cli
from colossal_llama2.tokenizer.init_tokenizer import Settings, main

if __name__ == "__main__":
    cli.run(Settings, main)
