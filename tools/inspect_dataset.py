"""Look at a prepared corpus: see ``--help``."""

from colossal_llama2 import cli
from colossal_llama2.dataset.inspect_dataset import InspectSettings, main

if __name__ == "__main__":
    cli.run(InspectSettings, main)
