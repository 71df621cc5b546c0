"""Find the pieces that a corpus needs and a tokenizer lacks: see ``--help``."""

from colossal_llama2 import cli
from colossal_llama2.tokenizer.mine_pieces import MineSettings, main

if __name__ == "__main__":
    cli.run(MineSettings, main)
