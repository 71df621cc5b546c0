"""Continue a prompt on standard output, or the prompts of a file."""

from colossal_llama2 import cli
from colossal_llama2.chat.generate import GenerateSettings, main

if __name__ == "__main__":
    cli.run(GenerateSettings, main)
