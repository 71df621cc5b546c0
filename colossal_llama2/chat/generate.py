"""The command `tools/generate.py`: continue a prompt on standard output."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from colossal_llama2 import cli
from colossal_llama2.chat.generation import (
    GenerationOptions,
    check_options,
    continue_text,
    encode_prompt,
    room_after,
)
from colossal_llama2.errors import InputError
from colossal_llama2.model.inference import load_for_inference


@dataclass(frozen=True)
class GenerateSettings:
    """Continue a prompt, token by token, on standard output."""

    model: Path
    """Model folder, its tokenizer inside."""
    prompt: str | None = None
    """Text to continue; an empty one asks for a text from the beginning."""
    prompt_file: Path | None = None
    """UTF-8 file with the text to continue, taken as it stands, its last line ending included."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""
    adapter: Path | None = None
    """LoRA adapter to put on the model, as train.py or peft saved it."""
    options: GenerationOptions = field(default_factory=GenerationOptions)


def main(settings: GenerateSettings) -> None:
    """Read the prompt, load the model, write the continuation; figures go to standard error."""
    check_options(settings.options)
    prompt = read_prompt(settings)
    loaded = load_for_inference(settings.model, settings.device, settings.adapter)
    prompt_ids = encode_prompt(loaded, prompt)
    room = room_after(loaded, prompt_ids)
    if room < settings.options.max_new_tokens:
        cli.warn(f"the model's context has room for {room} tokens after this prompt, no more will be written")
    started = time.perf_counter()
    written = continue_text(loaded, prompt_ids, settings.options, emit=_show)
    seconds = time.perf_counter() - started
    print(flush=True)
    why = "the model came to an end" if written.ended else "the limit was reached"
    count = len(written.ids)
    print(f"[{count} tokens, {count / seconds:.1f} tokens/s, {why}]", file=sys.stderr, flush=True)


def read_prompt(settings: GenerateSettings) -> str:
    """Return the prompt.

    Raises:
        InputError: none or two were given, or the file is not UTF-8 text.
    """
    if (settings.prompt is None) == (settings.prompt_file is None):
        what = "no prompt" if settings.prompt is None else "two prompts"
        raise InputError(what, remedy="give either --prompt or --prompt_file")
    if settings.prompt is not None:
        try:
            settings.prompt.encode()
        except UnicodeEncodeError:
            raise InputError("the prompt is not UTF-8", remedy="pass it with --prompt_file") from None
        return settings.prompt
    path = settings.prompt_file
    assert path is not None
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    except UnicodeDecodeError:
        raise InputError("not UTF-8", path=path, remedy="convert the file to UTF-8") from None


def _show(part: str) -> None:
    sys.stdout.write(part)
    sys.stdout.flush()


if __name__ == "__main__":
    cli.run(GenerateSettings, main)
