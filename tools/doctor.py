"""Check that a run can start on every host of a hostfile."""

from colossal_llama2 import cli
from colossal_llama2.engine.nodes.doctor import DoctorSettings, main

if __name__ == "__main__":
    cli.run(DoctorSettings, main)
