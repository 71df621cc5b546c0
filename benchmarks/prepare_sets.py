"""What preparing conversations costs, beside the encoder alone and beside transformers, in processor seconds.

    python benchmarks/prepare_sets.py --data DIR

DIR holds ``llama2_tokenizer/`` and ``sft/`` with jsonl. Of the same conversations, in turn and several times over: read
and parsed; rendered with contents and learned spans found; encoded with labels; the rendered text by the encoder alone,
without markers and labels; and by transformers' ``apply_chat_template(tokenize=True)``, which gives ids without labels.
The whole command, reading the tokenizer and writing included, is timed once. One thread throughout.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from colossal_llama2 import cli
from colossal_llama2.dataset.conversation import Place, Turn, best_conversation
from colossal_llama2.dataset.conversation_layouts import read_record, recognise
from colossal_llama2.dataset.conversation_markers import markers_of
from colossal_llama2.dataset.conversation_spans import Locator
from colossal_llama2.dataset.conversation_template import load_template
from colossal_llama2.dataset.conversation_tokens import encode_conversations
from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings
from colossal_llama2.dataset.prepare_dataset import main as prepare
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import read_jsonl
from colossal_llama2.tokenizer.loading import load_encoder, load_tokenizer


@dataclass(frozen=True)
class Settings:
    """Measure the preparation of conversations."""

    data: Path
    """Folder with llama2_tokenizer/ and sft/."""
    template: str = "llama2"
    """Ready chat template."""
    rounds: int = 3
    """How often each is measured; the least counts."""
    output: Path = Path(__file__).resolve().parent / "results" / "prepare_sets.json"
    """File to write the result to."""


def main(settings: Settings) -> None:
    """Measure every file and the whole command, and save the figures."""
    tokenizer_dir = settings.data / "llama2_tokenizer"
    tokenizer, encoder = load_tokenizer(tokenizer_dir), load_encoder(tokenizer_dir)
    template, markers = load_template(tokenizer, settings.template, None), markers_of(tokenizer)
    result: dict[str, Any] = {"machine": describe_machine(), "template": settings.template, "files": {}}
    for path in sorted((settings.data / "sft").glob("*.jsonl")):
        conversations = _read(path)
        locator = Locator(template, markers)
        located = locator.locate(conversations)
        messages = [[{"role": turn.role, "content": turn.content} for turn in turns] for turns in conversations]
        ways: dict[str, Callable[[], Any]] = {
            "read": partial(_read, path),
            "render and locate": partial(locator.locate, conversations),
            "encode with labels": partial(encode_conversations, located, markers, encoder),
            "encoder alone": partial(encoder.encode, [one.text for one in located]),
            "transformers": partial(
                tokenizer.apply_chat_template, messages, chat_template=template.text, return_dict=False
            ),
        }
        seconds = {name: float("inf") for name in ways}
        for _ in range(settings.rounds):
            for name, way in ways.items():
                seconds[name] = min(seconds[name], _processor_seconds(way))
        ours = sum(seconds[name] for name in ("read", "render and locate", "encode with labels"))
        megabytes = path.stat().st_size / 1e6
        result["files"][path.name] = {
            "megabytes": round(megabytes, 3),
            "conversations": len(conversations),
            "processor_seconds": {name: round(value, 3) for name, value in seconds.items()},
            "ours_megabytes_per_processor_second": round(megabytes / ours, 2),
            "ours_over_encoder_alone": round(ours / seconds["encoder alone"], 2),
            "transformers_over_ours": round(seconds["transformers"] / ours, 2),
        }
        cli.say(f"{path.name}: {result['files'][path.name]}")
    result["command"] = _command(settings)
    cli.say(f"the command: {result['command']}")
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    settings.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> list[list[Turn]]:
    conversations = []
    for line, fields in read_jsonl(path):
        layout = recognise(fields)
        assert layout is not None
        try:
            turns = best_conversation(read_record(fields, layout, Place(path, line)).example)
        except InputError:
            continue  # what the command would refuse
        conversations.append(turns)
    return conversations


def _command(settings: Settings) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        options = PrepareSetSettings(
            type="sft",
            data_input_dirs=str(settings.data / "sft"),
            tokenizer_dir=settings.data / "llama2_tokenizer",
            data_arrow_output_dir=Path(folder) / "set",
            chat_template=settings.template,
            bad_records="skip",
            num_workers=1,
        )
        seconds = _processor_seconds(lambda: prepare(options))
    megabytes = sum(path.stat().st_size for path in (settings.data / "sft").glob("*.jsonl")) / 1e6
    return {
        "megabytes": round(megabytes, 2),
        "processor_seconds": round(seconds, 2),
        "megabytes_per_processor_second": round(megabytes / seconds, 2),
    }


def _processor_seconds(way: Callable[[], Any]) -> float:
    begun = time.process_time()
    way()
    return time.process_time() - begun


if __name__ == "__main__":
    cli.run(Settings, main)
