"""The command `tools/chat.py`: talk to a model, or to several that answer the same."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from colossal_llama2.chat.generation import GenerationOptions, check_options
from colossal_llama2.chat.talk.chat_format import ChatFormat
from colossal_llama2.chat.talk.conversation import Conversation
from colossal_llama2.chat.talk.speaker import Speaker, load_draft, load_speaker
from colossal_llama2.chat.terminal.lines import join_blocks, piped_lines, typed_lines
from colossal_llama2.chat.terminal.screen import Screen, warn
from colossal_llama2.chat.terminal.session import COMMANDS, Seat, Session
from colossal_llama2.errors import InputError
from colossal_llama2.model.inference import LoadedModel


@dataclass(frozen=True)
class ChatSettings:
    """Talk to a model in the terminal; from a pipe each line is one message. /help tells the commands."""

    model: Path | None = None
    """Model folder, its tokenizer and chat template inside."""
    compare: tuple[Path, ...] = ()
    """Model folders that answer the same messages one under the other, each with its own history, behind --model."""
    adapter: Path | None = None
    """LoRA adapter to put on --model, as train.py or peft saved it."""
    draft: Path | None = None
    """Smaller model with the same tokenizer that writes ahead for --model: the same greedy replies, in fewer steps."""
    system: str = ""
    """System message at the head of the conversation."""
    chat_template: str = ""
    """Jinja file, or the name of a ready template, instead of the model's own; beside others it is for those without
    one."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1 ..."""
    options: GenerationOptions = field(default_factory=GenerationOptions)


def main(settings: ChatSettings) -> None:
    """Load the models, take line after line until the input ends or /quit."""
    check_options(settings.options)
    is_interactive = sys.stdin.isatty()
    session = Session(open_seats(settings), Screen(), is_interactive)
    lines = typed_lines([*COMMANDS, "/quit"]) if is_interactive else join_blocks(piped_lines())
    if is_interactive:
        session.screen.tell(f"{', '.join(seat.speaker.name for seat in session.seats)}; /help tells the commands")
    for line in lines:
        if not session.take(line):
            break


def open_seats(settings: ChatSettings) -> list[Seat]:
    """Load the models that are asked for.

    Raises:
        InputError: none or one to compare is named, a model or template is not there, or flags do not go together.
    """
    folders: list[tuple[Path, Path | None]] = [(folder, None) for folder in settings.compare]
    if settings.model is not None:
        folders.insert(0, (settings.model, settings.adapter))
    elif settings.adapter or settings.draft:
        raise InputError("--adapter and --draft belong to --model", remedy="name the model by --model")
    if not folders or (settings.compare and len(folders) < 2):
        raise InputError("no model" if not folders else "one model to compare", remedy="give --model, or two models")
    if settings.draft and settings.compare:
        raise InputError("--draft beside --compare", remedy="leave one of them out: it changes nothing in the replies")
    loaded = [load_speaker(folder, settings.device, adapter) for folder, adapter in folders]
    templates = choose_templates(loaded, settings.chat_template)
    draft = None if settings.draft is None else load_draft(settings.draft, loaded[0][1]).model
    seats = []
    names = distinct([name for name, _ in loaded])
    for name, (_, model), template in zip(names, loaded, templates, strict=True):
        speaker = Speaker(name, model, ChatFormat(model, template), settings.options, draft)
        if speaker.longest_reply < settings.options.max_new_tokens:
            half = speaker.longest_reply
            warn(f"{name} takes {model.context_length} tokens: its replies end after {half}, half of them")
        seats.append(Seat(speaker, Conversation(settings.system)))
    return seats


def choose_templates(loaded: list[tuple[str, LoadedModel]], named: str) -> list[str]:
    """Name the template of each model, empty for what its tokenizer holds.

    One alone takes what is named. Beside others those that have none take what is named, else they are lent the
    template of the first that has one: a base model is asked as the model that was made of it.

    Raises:
        InputError: a template is named and nobody needs it.
    """
    if len(loaded) == 1:
        return [named]
    lacking = [not model.tokenizer.chat_template for _, model in loaded]
    if named and not any(lacking):
        raise InputError("--chat_template, and every model has its own", remedy="leave it out")
    if not named and any(lacking) and not all(lacking):
        lender, lending = loaded[lacking.index(False)]
        for (name, model), lacks in zip(loaded, lacking, strict=True):
            if lacks:
                model.tokenizer.chat_template = lending.tokenizer.chat_template
                warn(f"{name} has no chat template: it is asked by that of {lender}")
    return [named if lacks else "" for lacks in lacking]


def distinct(names: list[str]) -> list[str]:
    """Number the names that stand more than once."""
    return [
        f"{name} ({names[:place].count(name) + 1})" if names.count(name) > 1 else name
        for place, name in enumerate(names)
    ]
