"""The command `tools/generate.py`: continue a prompt on standard output, or the prompts of a file."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from colossal_llama2 import cli
from colossal_llama2.chat.batch_generation import BatchPrompt
from colossal_llama2.chat.generation import GenerationOptions, check_options, continue_text, room_after
from colossal_llama2.chat.prompt_file import Asking, FileOptions, answer_file, check_files
from colossal_llama2.errors import InputError
from colossal_llama2.model.inference import LoadedModel, load_for_inference


@dataclass(frozen=True)
class GenerateSettings:
    """Continue a prompt, token by token, on standard output; or all prompts of a file, into a file."""

    model: Path
    """Model folder, its tokenizer inside."""
    prompt: str | None = None
    """Text to continue; an empty one asks for a text from the beginning."""
    prompt_file: Path | None = None
    """UTF-8 file with the text to continue, taken as it stands, its last line ending included."""
    files: FileOptions = field(default_factory=FileOptions)
    chat: bool = False
    """Ask prompts as messages of a user, by the chat template, instead of continuing them."""
    chat_template: str = ""
    """Jinja file, or the name of a ready template, instead of the model's own."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""
    adapter: Path | None = None
    """LoRA adapter to put on the model, as train.py or peft saved it."""
    options: GenerationOptions = field(default_factory=GenerationOptions)


def main(settings: GenerateSettings) -> None:
    """Read the prompts, load the model, write what it answers; figures go to standard error."""
    check_options(settings.options)
    check_files(settings.files)
    prompt = None if settings.files.input_file else read_prompt(settings)
    if prompt is None and (settings.prompt is not None or settings.prompt_file is not None):
        raise InputError("a prompt beside --input_file", remedy="leave one of them out")
    loaded = load_for_inference(settings.model, settings.device, settings.adapter)
    asking = Asking(loaded, settings.options, settings.chat, settings.chat_template)
    if prompt is None:
        answer_file(loaded, asking, settings.files, settings.options, cli.as_yaml(settings))
    else:
        continue_prompt(loaded, asking.text(prompt), settings.options)


def continue_prompt(loaded: LoadedModel, prompt: BatchPrompt, options: GenerationOptions) -> None:
    """Write what follows a prompt on standard output.

    Raises:
        InputError: the prompt fills the context.
    """
    room = room_after(loaded, prompt.ids)
    if room < options.max_new_tokens:
        cli.warn(f"the model's context has room for {room} tokens after this prompt, no more will be written")
    started = time.perf_counter()
    written = continue_text(loaded, prompt.ids, options, emit=_show, stream=prompt.stream)
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
        raise InputError(what, remedy="give either --prompt or --prompt_file, or --input_file")
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
