"""Serve models over HTTP by the OpenAI API: see `--help`."""

from colossal_llama2 import cli
from colossal_llama2.chat.serving.settings import ServeSettings


def main(settings: ServeSettings) -> None:
    """Import what the command needs only when it runs: without the extra, --help still helps."""
    from colossal_llama2.chat.serving.serve import main as serve

    serve(settings)


if __name__ == "__main__":
    cli.run(ServeSettings, main)
