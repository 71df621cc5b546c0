"""Write a model in 8 or 4 bits, and print what that saves and what it costs on held-out text."""

from colossal_llama2 import cli
from colossal_llama2.report.quantize import QuantizeSettings, main

if __name__ == "__main__":
    cli.run(QuantizeSettings, main)
