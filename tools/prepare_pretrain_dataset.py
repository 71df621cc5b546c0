"""Encode, splice and bucket jsonl corpora: see `--help`."""

from __future__ import annotations

from colossal_llama2 import cli
from colossal_llama2.dataset.prepare_pretrain_dataset import PrepareSettings, main

if __name__ == "__main__":
    cli.run(PrepareSettings, main)
