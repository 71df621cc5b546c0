"""Print what a model takes of a GPU while it answers, as stored and in each quantised format."""

from colossal_llama2 import cli
from colossal_llama2.report.plan_inference import PlanInferenceSettings, main

if __name__ == "__main__":
    cli.run(PlanInferenceSettings, main)
