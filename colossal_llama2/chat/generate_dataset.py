"""`tools/generate_dataset.py`: have an endpoint make conversations, instructions, preference scores or prompts."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

from colossal_llama2 import cli
from colossal_llama2.chat.answer_journal import AnswerJournal, open_journal, read_outputs
from colossal_llama2.chat.asking import Asker
from colossal_llama2.chat.conversations import estimate_conversations, make_conversations
from colossal_llama2.chat.endpoint import Endpoint, import_extra, read_key
from colossal_llama2.chat.judging import JudgingJob, estimate_judging, judge_examples
from colossal_llama2.chat.making_ledger import Estimate, Made
from colossal_llama2.chat.making_settings import (
    GenerateDatasetSettings,
    Job,
    check_settings,
    deciding_settings,
    make_job,
)
from colossal_llama2.chat.novelty import KeptTexts
from colossal_llama2.chat.progress import Progress
from colossal_llama2.chat.self_instruct import PoolJob, estimate_pool, grow_pool
from colossal_llama2.chat.spending import Spending
from colossal_llama2.outputs import refuse_existing, refuse_folder, whole_file

VERSION = 1


def main(settings: GenerateDatasetSettings) -> int:
    """Make the data; what is there is written whole, also when a limit ends the run.

    Returns:
        1 if the endpoint failed too often in a row, else 0.
    """
    prompts = check_settings(settings)
    job = make_job(settings, prompts)
    if settings.dry_run:
        _show(settings, _estimate(settings, job))
        return 0
    import_extra("openai")
    kept = None if isinstance(job, JudgingJob) else KeptTexts(settings.novelty)
    journal_path = settings.output.with_suffix(".journal")
    refuse_folder(settings.output)
    if not _is_own(settings.output, journal_path):
        refuse_existing(settings.output, settings.overwrite)
    key = read_key(settings.endpoint)
    with open_journal(journal_path, deciding_settings(settings, prompts)) as journal:
        return asyncio.run(_run(settings, job, kept, journal, key))


async def _run(
    settings: GenerateDatasetSettings, job: Job, kept: KeptTexts | None, journal: AnswerJournal, key: str | None
) -> int:
    spending = Spending(settings.spending, journal)
    before = spending.answers
    if before:
        cli.say(f"going on: {before} answers are in {journal.path}")
    endpoint = Endpoint(settings.endpoint, key)
    progress = Progress(spending)
    asker = Asker(endpoint, journal, spending, settings.endpoint, settings.asking, settings.seed)
    try:
        concurrency = settings.asking.concurrency
        if isinstance(job, JudgingJob):
            made = await judge_examples(job, asker, concurrency, progress)
        elif isinstance(job, PoolJob):
            assert kept is not None
            made = await grow_pool(job, asker, kept, concurrency, progress)
        else:
            assert kept is not None
            made = await make_conversations(job, asker, kept, concurrency, progress)
    finally:
        progress.close()
        await endpoint.close()
    ledger = _ledger(settings, made, asker, spending)
    _write(settings, made, ledger, journal)
    _say(settings, ledger, spending.answers - before)
    return 1 if spending.stopped_by == "max_failures" else 0


def _is_own(output: Path, journal_path: Path) -> bool:
    """Tell whether the output that is there is one that the journal tells of, unchanged."""
    return output.is_file() and hashlib.sha256(output.read_bytes()).hexdigest() in read_outputs(journal_path)


def _ledger(settings: GenerateDatasetSettings, made: Made, asker: Asker, spending: Spending) -> dict[str, Any]:
    malformed = asker.malformed.total()
    ledger = {
        "version": VERSION,
        "kind": settings.kind,
        "records": len(made.records),
        "stopped_by": spending.stopped_by,
        "stages": {name: tally.as_ledger() for name, tally in made.stages.items()},
        "answers": {
            "usable": asker.usable,
            "malformed": dict(sorted(asker.malformed.items())),
            "not_used": spending.answers - asker.usable - malformed,
            "thoughts_removed": asker.thoughts_removed,
        },
        "spent": spending.as_ledger(),
        **made.findings,
    }
    last = list(made.stages.values())[-1]
    if last.kept != len(made.records) or ledger["answers"]["not_used"] < 0:
        raise RuntimeError(f"the ledger does not balance: {ledger}")
    return ledger


def _write(settings: GenerateDatasetSettings, made: Made, ledger: dict[str, Any], journal: AnswerJournal) -> None:
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in made.records).encode()
    beside = {
        ".ledger.json": json.dumps(ledger, indent=2, ensure_ascii=False) + "\n",
        ".settings.yaml": cli.as_yaml(settings),
    }
    journal.add_output(hashlib.sha256(lines).hexdigest())
    with whole_file(settings.output, overwrite=True) as path:
        path.write_bytes(lines)
    for suffix, text in beside.items():
        with whole_file(settings.output.with_suffix(suffix), overwrite=True) as path:
            path.write_text(text, encoding="utf-8")


def _say(settings: GenerateDatasetSettings, ledger: dict[str, Any], answers_now: int) -> None:
    for name, tally in ledger["stages"].items():
        lost = {part: sum(tally[part].values()) for part in ("duplicates", "malformed", "failed")}
        said = ", ".join(f"{count} {part}" for part, count in lost.items() if count)
        cli.say(f"{name}: {tally['asked']} asked, {tally['kept']} kept{', ' + said if said else ''}")
    spent = ledger["spent"]
    cost = "" if spent["cost"] is None else f", cost {spent['cost']:.4f}"
    cli.say(
        f"{spent['requests']} requests ({answers_now} answered now), {spent['prompt_tokens']:,} prompt and "
        f"{spent['completion_tokens']:,} completion tokens{cost}"
    )
    if ledger["stopped_by"] is not None:
        more = "" if ledger["stopped_by"] == "max_failures" else " with more of it"
        cli.warn(f"stopped by --{ledger['stopped_by']}; the same command{more} goes on")
    if ledger.get("nothing_new_any_more"):
        cli.warn("several rounds brought nothing new: more seeds, or a higher --novelty or --temperature, may")
    cli.say(f"{ledger['records']} records in {settings.output}")


def _estimate(settings: GenerateDatasetSettings, job: Job) -> Estimate:
    if isinstance(job, JudgingJob):
        return estimate_judging(job, settings.endpoint.max_tokens)
    if isinstance(job, PoolJob):
        return estimate_pool(job, settings.endpoint.max_tokens)
    return estimate_conversations(job, settings.endpoint.max_tokens)


def _show(settings: GenerateDatasetSettings, estimate: Estimate) -> None:
    for sample in estimate.samples:
        cli.say("".join(f"[{message['role']}]\n{message['content']}\n\n" for message in sample) + "-" * 20)
    cli.say(
        f"{estimate.requests:,} requests to {settings.endpoint.base_url} without repeats; if every answer were "
        f"--max_tokens long: about {estimate.prompt_tokens:,} prompt and "
        f"{estimate.completion_tokens:,} completion tokens"
    )
    prices = settings.spending
    if prices.price_prompt is not None or prices.price_completion is not None:
        prompt, completion = prices.price_prompt or 0.0, prices.price_completion or 0.0
        cost = (estimate.prompt_tokens * prompt + estimate.completion_tokens * completion) / 1e6
        cli.say(f"cost at most about {cost:.2f}")
