"""What `tools/generate_dataset.py` can be told, what of it goes together, and the job that comes of it."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama2.chat.asking import AskingOptions, check_asking
from colossal_llama2.chat.conversations import ConversationJob
from colossal_llama2.chat.endpoint import EndpointOptions, check_endpoint
from colossal_llama2.chat.judging import Disagreement, JudgingJob
from colossal_llama2.chat.prompt_texts import MakingKind, PromptTexts, load_prompts
from colossal_llama2.chat.seed_tasks import read_examples, read_lines, read_seeds
from colossal_llama2.chat.self_instruct import PoolJob
from colossal_llama2.chat.spending import SpendingOptions, check_spending
from colossal_llama2.dataset.conversation import USER
from colossal_llama2.errors import InputError

_DEFAULT_PERSONA = {"en": "a curious person", "zh": "一个好奇的人"}
_ONLY_FOR: dict[str, tuple[MakingKind, ...]] = {
    "num": ("conversations", "instructions", "prompts"),
    "topics_file": ("conversations",),
    "personas_file": ("conversations",),
    "turns": ("conversations",),
    "seeds_file": ("instructions", "prompts"),
    "per_request": ("instructions", "prompts"),
    "requests_per_round": ("instructions", "prompts"),
    "novelty": ("conversations", "instructions", "prompts"),
    "input_file": ("preferences",),
    "num_answers": ("preferences",),
    "judge_model": ("preferences",),
    "judge_temperature": ("preferences",),
    "on_disagreement": ("preferences",),
}
_REQUIRED: dict[MakingKind, tuple[str, ...]] = {
    "conversations": ("num", "topics_file"),
    "instructions": ("num", "seeds_file"),
    "preferences": ("input_file",),
    "prompts": ("num", "seeds_file"),
}
_READ = ("topics_file", "personas_file", "seeds_file", "input_file", "prompt_file")
# What does not decide which questions are asked: a journal is continued whatever these are.
_NOT_DECIDING = (
    *("output", "num", "base_url", "api_key_env", "api_key_file", "timeout", "overwrite", "dry_run", "novelty"),
    *("on_disagreement", "endpoint", "spending", "asking"),
    *_READ,  # they count by what they say
)
_SUFFIXES = (".jsonl", ".journal", ".ledger.json", ".settings.yaml")
Job = ConversationJob | PoolJob | JudgingJob


@dataclass(frozen=True)
class GenerateDatasetSettings:
    """Have an OpenAI-compatible endpoint make data: conversations, instructions, preference scores or prompts.

    Every answer is kept in a journal beside the output: a run that was killed or stopped goes on where it was when the
    same command is given again. docs/generate_dataset.md tells what each kind asks and writes.
    """

    kind: MakingKind
    """conversations of two roles, instructions (self-instruct), preferences (scores of a judge), or prompts."""
    output: Path
    """The jsonl file to write; beside it NAME.journal, NAME.ledger.json and NAME.settings.yaml."""
    endpoint: EndpointOptions
    num: int | None = None
    """How many conversations to have, or instructions or prompts to keep."""
    language: str = "English"
    """Language to write in, by its name; for Chinese the package's own words are Chinese too."""
    topics_file: Path | None = None
    """What conversations are about: a topic a line."""
    personas_file: Path | None = None
    """Who asks in conversations: a person a line (default: a curious person)."""
    turns: int = 4
    """Most exchanges of a question and an answer in a conversation."""
    seeds_file: Path | None = None
    """jsonl with tasks or prompts that people wrote."""
    per_request: int = 8
    """New instructions or prompts that each request asks for."""
    requests_per_round: int = 4
    """Requests that are made from the same pool of instructions or prompts, before it grows."""
    novelty: float = 0.7
    """Leave out what has this ROUGE-L or more with anything that is kept; 1 leaves out repeats alone."""
    input_file: Path | None = None
    """jsonl of any layout of docs/datasets.md whose answers are judged."""
    num_answers: int = 4
    """Answers to have where a record has fewer than two."""
    judge_model: str | None = None
    """Model that judges (default: --model)."""
    judge_temperature: float | None = 0.0
    """Sampling temperature of the judge; None takes that of the answers."""
    on_disagreement: Disagreement = "mean"
    """Where the order of the answers decides which one is best: take the mean of the scores, or drop the record."""
    prompt_file: Path | None = None
    """Words to use instead of the package's own; its prompts/ has a file of each kind to begin with."""
    seed: int = 42
    """Decides what is shown to the model and, where the endpoint takes a seed, what it answers."""
    dry_run: bool = False
    """Print what would be asked and an estimate; nothing is sent, read from the environment or written."""
    overwrite: bool = False
    """Replace an output that this command did not make. The journal is continued all the same."""
    spending: SpendingOptions = field(default_factory=SpendingOptions)
    asking: AskingOptions = field(default_factory=AskingOptions)


def check_settings(settings: GenerateDatasetSettings) -> PromptTexts:
    """Refuse what cannot work before anything is sent, and return the words that are put to the model.

    Raises:
        InputError: which setting, and why.
    """
    check_endpoint(settings.endpoint)
    check_spending(settings.spending)
    check_asking(settings.asking)
    if settings.output.suffix != ".jsonl":
        raise InputError("does not end with .jsonl", path=settings.output, remedy="name it so")
    defaults = {option.name: option.default for option in dataclasses.fields(settings)}
    for name, kinds in _ONLY_FOR.items():
        value = getattr(settings, name)
        if settings.kind not in kinds and value != defaults[name]:
            raise InputError(f"--{name} is not for --kind {settings.kind}", remedy="leave it out")
        if name in _REQUIRED[settings.kind] and value is None:
            raise InputError(f"--kind {settings.kind} needs --{name}", remedy="see docs/generate_dataset.md")
    counts = (settings.num or 1, settings.turns, settings.per_request, settings.requests_per_round)
    if min(counts) < 1 or settings.num == 0 or settings.num_answers < 2 or settings.seed < 0:
        what = "--num, --turns, --per_request and --requests_per_round begin at 1, --num_answers at 2, --seed at 0"
        raise InputError(what, remedy="give more")
    _refuse_own_input(settings)
    return load_prompts(settings.kind, settings.language, settings.prompt_file)


def _refuse_own_input(settings: GenerateDatasetSettings) -> None:
    """Refuse an output that is read too: what people wrote would be replaced by what little a run that failed has."""
    written = {settings.output.with_suffix(end).resolve() for end in _SUFFIXES}
    for name in _READ:
        path: Path | None = getattr(settings, name)
        if path is not None and path.resolve() in written:
            raise InputError(
                f"is read by --{name} and would be written over", path=path, remedy="name another --output"
            )


def make_job(settings: GenerateDatasetSettings, prompts: PromptTexts) -> Job:
    """Read the files that the settings name, and return what is to be made.

    Raises:
        InputError: a file that cannot be used.
    """
    if settings.kind == "preferences":
        assert settings.input_file is not None
        examples = read_examples(settings.input_file)
        for line, example in examples:
            if not example.turns or example.turns[-1].role != USER:
                raise InputError("does not end with a turn to be answered", path=settings.input_file, line=line)
        return JudgingJob(
            examples=[example for _, example in examples],
            num_answers=settings.num_answers,
            judge_model=settings.judge_model,
            judge_temperature=settings.judge_temperature,
            on_disagreement=settings.on_disagreement,
            prompts=prompts,
            language=prompts.language,
        )
    assert settings.num is not None
    if settings.kind == "conversations":
        assert settings.topics_file is not None
        personas = None if settings.personas_file is None else read_lines(settings.personas_file)
        return ConversationJob(
            num=settings.num,
            turns=settings.turns,
            topics=read_lines(settings.topics_file),
            personas=personas or [_DEFAULT_PERSONA["zh" if prompts.chinese else "en"]],
            prompts=prompts,
            language=prompts.language,
            seed=settings.seed,
        )
    assert settings.seeds_file is not None
    return PoolJob(
        num=settings.num,
        seeds=read_seeds(settings.seeds_file),
        with_instances=settings.kind == "instructions",
        prompts=prompts,
        language=prompts.language,
        per_request=settings.per_request,
        requests_per_round=settings.requests_per_round,
        seed=settings.seed,
    )


def deciding_settings(settings: GenerateDatasetSettings, prompts: PromptTexts) -> dict[str, Any]:
    """Return everything that decides which questions are asked; files by what they say, not where they lie.

    --num and --input_file are not among them: more may be asked for later, and what is there stays as it is.
    """
    deciding = {
        option.name: getattr(group, option.name)
        for group in (settings, settings.endpoint)
        for option in dataclasses.fields(group)
        if option.name not in _NOT_DECIDING
    }
    deciding["malformed_retries"] = settings.asking.malformed_retries
    if settings.kind in ("instructions", "prompts"):
        deciding["novelty"] = settings.novelty  # decides what is shown next
    for name in ("topics_file", "personas_file", "seeds_file"):
        path: Path | None = getattr(settings, name)
        if path is not None:
            deciding[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    deciding["prompt_file"] = hashlib.sha256(prompts.text.encode()).hexdigest()
    return deciding
