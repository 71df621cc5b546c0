"""Print bits per byte and tokens per character of a model on files of text."""

from colossal_llama2 import cli
from colossal_llama2.report.evaluate import EvaluateSettings, main

if __name__ == "__main__":
    cli.run(EvaluateSettings, main)
