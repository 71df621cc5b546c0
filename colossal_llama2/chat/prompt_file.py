"""A file of prompts answered into a file of answers: records keep their fields, and get what was written."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from colossal_llama2 import cli
from colossal_llama2.chat.batch_generation import BatchPrompt, continue_in_batches
from colossal_llama2.chat.generation import Continuation, GenerationOptions, encode_prompt, start_reply
from colossal_llama2.chat.talk.chat_format import ChatFormat
from colossal_llama2.chat.talk.reply import ReplyStream
from colossal_llama2.dataset.conversation import ASSISTANT, USER, Place, Turn
from colossal_llama2.dataset.conversation_fields import messages, optional_text, text_field
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import read_jsonl
from colossal_llama2.model.inference import LoadedModel
from colossal_llama2.outputs import refuse_existing, refuse_folder, whole_file

ANSWER, LEDGER = "answer", "generation"
_REMEDY: Final = 'write {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


@dataclass(frozen=True)
class FileOptions:
    """Where prompts come from and answers go."""

    input_file: Path | None = None
    """A jsonl file with a prompt a line: {"prompt": text to continue} or {"messages": a chat to reply to}."""
    output_file: Path | None = None
    """Where its records go, each with its answer and a count of tokens."""
    batch_size: int = 8
    """Most prompts of the file that are answered at a time."""
    overwrite: bool = False
    """Replace --output_file if it exists."""


class Asking:
    """Makes prompts of texts and chats.

    Args:
        loaded: the model.
        options: how it writes.
        as_chat: ask a prompt that is a text as a user's message.
        chat_template: see `ChatFormat`.
    """

    def __init__(self, loaded: LoadedModel, options: GenerationOptions, as_chat: bool, chat_template: str) -> None:
        self._loaded, self._options, self._as_chat, self._chat_template = loaded, options, as_chat, chat_template
        self._chat_format: ChatFormat | None = None

    def text(self, prompt: str) -> BatchPrompt:
        """Ask for the continuation of a text, or for the reply to it.

        Raises:
            InputError: it is to be asked as a message, and that cannot be done.
        """
        if self._as_chat:
            return self.chat([Turn(USER, prompt)])
        ids = encode_prompt(self._loaded, prompt)
        return BatchPrompt(ids, start_reply(self._loaded, ids, self._options))

    def chat(self, turns: Sequence[Turn]) -> BatchPrompt:
        """Ask for the reply to a chat.

        Raises:
            InputError: the model has no chat template, or it refuses the chat.
        """
        if self._chat_format is None:  # a base model that continues texts needs none
            self._chat_format = ChatFormat(self._loaded, self._chat_template)
        own = self._chat_format
        ids = own.encode(turns)
        stream = ReplyStream(self._loaded.tokenizer, ids, own.end_token_ids, self._options.stop, own.lead)
        return BatchPrompt(ids, stream)


def check_files(files: FileOptions) -> None:
    """Refuse files that cannot be read or written, before a model is loaded.

    Raises:
        InputError: naming the flag or the file.
    """
    if (files.input_file is None) != (files.output_file is None):
        raise InputError("--input_file and --output_file go together", remedy="give both or none")
    if files.batch_size < 1:
        raise InputError(f"--batch_size is {files.batch_size}", remedy="give at least 1")
    if files.input_file is None or files.output_file is None:
        return
    if files.output_file.resolve() == files.input_file.resolve():
        raise InputError("is read too", path=files.output_file, remedy="name another --output_file")
    for path in (files.output_file, settings_file(files.output_file)):
        refuse_folder(path)
        refuse_existing(path, files.overwrite)


def settings_file(output_file: Path) -> Path:
    """Return where the settings go: beside the answers."""
    return output_file.with_name(output_file.name.removesuffix(".jsonl") + ".settings.yaml")


def answer_file(
    loaded: LoadedModel, asking: Asking, files: FileOptions, options: GenerationOptions, settings: str
) -> None:
    """Answer every record of a file; figures go to standard error.

    Args:
        loaded: the model.
        asking: makes prompts.
        files: what is read and written.
        options: how the model writes.
        settings: the whole command's, as YAML, kept beside the answers.

    Raises:
        InputError: a record is no prompt, does not fit the context, or holds an answer already; nothing is written.
    """
    assert files.input_file is not None
    assert files.output_file is not None
    records, prompts = read_prompts(files.input_file, asking, loaded.context_length)
    tight = sum(loaded.context_length - len(prompt.ids) < options.max_new_tokens for prompt in prompts)
    if tight:
        cli.warn(f"behind {tight} of {len(prompts)} prompts the model's context has no room for --max_new_tokens")
    started = time.perf_counter()
    with tqdm(total=len(prompts), unit=" prompts", disable=not sys.stderr.isatty(), leave=False) as bar:
        written = continue_in_batches(loaded, prompts, options, files.batch_size, bar.update)
    seconds = time.perf_counter() - started
    lines = []
    for record, prompt, one in zip(records, prompts, written, strict=True):
        ledger = {"prompt_tokens": len(prompt.ids), "answer_tokens": len(one.ids), "finish": one.finish}
        lines.append(json.dumps({**record, ANSWER: one.text, LEDGER: ledger}, ensure_ascii=False) + "\n")
    beside = settings_file(files.output_file)
    with whole_file(beside, files.overwrite) as record_of_it, whole_file(files.output_file, files.overwrite) as work:
        record_of_it.write_text(settings, encoding="utf-8")
        work.write_text("".join(lines), encoding="utf-8")
    print(f"[{_summary(written, seconds)}]", file=sys.stderr, flush=True)


def read_prompts(path: Path, asking: Asking, context_length: int) -> tuple[list[dict[str, Any]], list[BatchPrompt]]:
    """Read a file's records and what each asks.

    Raises:
        InputError: see `answer_file`.
    """
    records, prompts = [], []
    for line, record in read_jsonl(path):
        place = Place(path, line)
        for name in (ANSWER, LEDGER):
            if name in record:
                raise place.complaint(f'the record holds "{name}" already', "rename the field")
        try:
            prompt = _asked(record, asking, place)
        except InputError as error:
            raise error if error.path else place.complaint(error.what, error.remedy) from None
        if len(prompt.ids) >= context_length:
            what = f"the prompt is {len(prompt.ids)} tokens long and the model's context {context_length}"
            raise place.complaint(what, "shorten the prompt")
        records.append(record)
        prompts.append(prompt)
    if not records:
        raise InputError("holds no prompt", path=path, remedy=_REMEDY)
    return records, prompts


def _asked(record: dict[str, Any], asking: Asking, place: Place) -> BatchPrompt:
    if ("prompt" in record) == ("messages" in record):
        raise place.complaint('has not one of "prompt" and "messages"', _REMEDY)
    if "prompt" in record:
        return asking.text(text_field(record, "prompt", place))
    system = optional_text(record, "system", place)
    turns = messages(record["messages"], "messages", place)
    if turns and turns[-1].role == ASSISTANT:
        raise place.complaint("the last message is the assistant's: there is nothing to reply to", "remove it")
    return asking.chat([*([Turn("system", system)] if system.strip() else []), *turns])


def _summary(written: Sequence[Continuation], seconds: float) -> str:
    tokens = sum(len(one.ids) for one in written)
    ways = Counter(one.finish for one in written)
    endings = ", ".join(f"{count} by {name.replace('_', ' ')}" for name, count in sorted(ways.items()))
    return f"{len(written)} answers, {tokens} tokens, {tokens / seconds:.1f} tokens/s; ended {endings}"
