"""Print what a training run will take of every device and machine, whether it fits, and what would."""

from colossal_llama2 import cli
from colossal_llama2.train.plan import PlanSettings, main

if __name__ == "__main__":
    cli.run(PlanSettings, main)
