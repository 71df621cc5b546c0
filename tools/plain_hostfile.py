"""Check a hostfile and write it as `colossalai run` can read it."""

from colossal_llama2 import cli
from colossal_llama2.engine.nodes.plain import PlainSettings, main

if __name__ == "__main__":
    cli.run(PlainSettings, main)
