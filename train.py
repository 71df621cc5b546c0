"""Every training stage starts here: see README.md, or `python train.py --help`."""

from __future__ import annotations

from colossal_llama2 import cli
from colossal_llama2.train.pretrain import main
from colossal_llama2.train.settings import TrainSettings

if __name__ == "__main__":
    cli.run(TrainSettings, main)
