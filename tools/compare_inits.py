"""Compare ways to start the rows of new tokens, before any training and after the same short training."""

from colossal_llama2 import cli
from colossal_llama2.report.compare_inits import CompareSettings, main

if __name__ == "__main__":
    cli.run(CompareSettings, main)
