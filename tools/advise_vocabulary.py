"""Say what a larger vocabulary would save and cost, before anything is trained: see ``--help``."""

from colossal_llama2 import cli
from colossal_llama2.report.advise_vocabulary import AdviceSettings, main

if __name__ == "__main__":
    cli.run(AdviceSettings, main)
