"""Talk to a model in the terminal."""

from colossal_llama2 import cli
from colossal_llama2.chat.terminal.chat import ChatSettings, main

if __name__ == "__main__":
    cli.run(ChatSettings, main)
