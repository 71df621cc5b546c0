"""The ledger of a prepared set: what became of every record, turn and token, with sums that must balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from colossal_llama2 import cli
from colossal_llama2.dataset.conversation_chunks import EncodedChunk
from colossal_llama2.dataset.conversation_encoding import Tally
from colossal_llama2.dataset.conversation_parts import Examples, WrittenPart
from colossal_llama2.dataset.inputs import InputFile
from colossal_llama2.dataset.ledger import MANIFEST, UnbalancedError

# A file's counts, in the order in which they are told; of each sum the parts follow it.
RECORDS = ("used", "refused", "of_other_stages")
TURNS = ("turns_kept", "turns_cut", "turns_unanswered", "answers_not_used", "turns_left_out")
OTHERS = (
    "conversations_cut",
    "prompts_cut",
    "prompt_tokens_cut",
    "system_turns_added",
    "turns_without_end_token",
    "with_marker_text",
    "sequences",
    "tokens",
    "learned_tokens",
)


def add_up(tallies: Sequence[Tally]) -> Tally:
    """Add tallies up; their lists follow one another."""
    total = Tally()
    for tally in tallies:
        total.counts.update(tally.counts)
        total.left_out.update(tally.left_out)
        total.passed_over.update(tally.passed_over)
        total.refused += tally.refused
        total.left_out_lines += tally.left_out_lines
    return total


def file_entries(
    files: Sequence[InputFile], layouts: Sequence[str | None], encoded: Sequence[EncodedChunk]
) -> list[dict[str, Any]]:
    """Tell of each file what became of its records, turns and tokens."""
    entries = []
    for source, (file, layout) in enumerate(zip(files, layouts, strict=True)):
        tally = add_up([chunk.tally for chunk in encoded if chunk.source == source])
        entries.append(
            {
                "file": file.name,
                "bytes": file.num_bytes,
                "layout": layout,
                "records": tally.counts["records"],
                **{name: tally.counts[name] for name in RECORDS},
                "left_out": dict(sorted(tally.left_out.items())),
                "turns": tally.counts["turns"],
                **{name: tally.counts[name] for name in (*TURNS, *OTHERS)},
                "fields_passed_over": dict(sorted(tally.passed_over.items())),
            }
        )
    return entries


def lines_of(files: Sequence[InputFile], encoded: Sequence[EncodedChunk], refused: bool) -> list[dict[str, Any]]:
    """List the lines that were refused or left out: file, line, reason."""
    return [
        {"file": files[chunk.source].name, "line": line, "reason": reason}
        for chunk in encoded
        for line, reason in (chunk.tally.refused if refused else chunk.tally.left_out_lines)
    ]


def add_destinations(
    entries: Sequence[dict[str, Any]], held: Examples, copies: npt.NDArray[np.int64], train: Examples
) -> None:
    """Add to each file where its used records went: held out, thinned away, or into rows, and how often."""
    for source, entry in enumerate(entries):
        own = copies[train.sources == source]
        entry["held_out"] = int((held.sources == source).sum())
        entry["thinned_away"] = int((own == 0).sum())
        entry["in_rows"] = int((own > 0).sum())
        entry["copies"] = int(own.sum())


def part_entries(written: Sequence[WrittenPart], max_length: int) -> list[dict[str, Any]]:
    """Tell of each part its rows, tokens and fill: tokens over what its rows could hold."""
    return [
        {**asdict(part), "fill": round(part.tokens / (part.rows * max_length), 6) if part.rows else 0.0}
        for part in written
    ]


def totals(entries: Sequence[dict[str, Any]], written: Sequence[WrittenPart], max_length: int) -> dict[str, Any]:
    """Add up files and parts."""
    names = ("records", *RECORDS, "turns", *TURNS, *OTHERS, "held_out", "thinned_away", "in_rows", "copies")
    summed: dict[str, Any] = {name: sum(entry[name] for entry in entries) for name in names}
    left_out: Counter[str] = Counter()
    for entry in entries:
        left_out.update(entry["left_out"])
    rows, tokens = sum(part.rows for part in written), sum(part.tokens for part in written)
    return {
        **summed,
        "left_out": dict(sorted(left_out.items())),
        "rows": rows,
        "tokens_in_rows": tokens,
        "learned_tokens_in_rows": sum(part.learned_tokens for part in written),
        "pairs_in_rows": sum(part.pairs for part in written),
        "fill": round(tokens / (rows * max_length), 6) if rows else 0.0,
    }


def balance(entries: Sequence[dict[str, Any]], examples: Examples) -> None:
    """Check each file's sums, and that the encoded examples are those that were counted.

    Raises:
        UnbalancedError: a sum differs.
    """
    for source, entry in enumerate(entries):
        own = examples.choose(examples.sources == source)
        left_out = sum(entry["left_out"].values())
        _same(
            {
                "records": (entry["records"], sum(entry[name] for name in RECORDS) + left_out),
                "turns": (entry["turns"], sum(entry[name] for name in TURNS)),
                "examples": (entry["used"], len(own)),
                "destinations": (entry["used"], entry["held_out"] + entry["thinned_away"] + entry["in_rows"]),
                "tokens": (entry["tokens"], int(own.tokens.sum())),
                "learned tokens": (entry["learned_tokens"], int(own.learned.sum())),
                "sequences": (entry["sequences"], int(own.sequences.sum())),
            },
            f" of {entry['file']}",
        )


def balance_parts(planned: Sequence[Examples], written: Sequence[WrittenPart]) -> None:
    """Check that each part holds what was planned for it, as counted in its rows.

    Raises:
        UnbalancedError: a sum differs.
    """
    for examples, part in zip(planned, written, strict=True):
        _same(
            {
                "examples": (len(examples), part.examples),
                "sequences": (int(examples.sequences.sum()), part.sequences),
                "tokens": (int(examples.tokens.sum()), part.tokens),
                "learned tokens": (int(examples.learned.sum()), part.learned_tokens),
            },
            f" of part {part.bucket}",
        )


def say(ledger: dict[str, Any]) -> None:
    """Say what was made, and what may surprise."""
    total = ledger["totals"]
    for entry in ledger["files"]:
        cli.say(f"{entry['file']}: {entry['layout'] or 'no records'}, {entry['used']:,} of {entry['records']:,} used")
    if ledger["ignored_files"]:
        cli.warn(f"{len(ledger['ignored_files'])} files are of no kind that is read here and were passed over")
    passed_over: Counter[str] = Counter()
    for entry in ledger["files"]:
        passed_over.update(entry["fields_passed_over"])
    for name, count in sorted(passed_over.items() if ledger["type"] != "prompt" else []):  # prompts keep the record
        cli.warn(f'the field "{name}" is not read; {count:,} records have it')
    if total["turns_without_end_token"]:
        cli.warn(f"the template ends {total['turns_without_end_token']:,} learned turns without an end token")
    for reason, count in total["left_out"].items():
        cli.say(f"{count:,} records were left out: {reason}")
    if total["turns_cut"]:
        cli.say(
            f"{total['conversations_cut']:,} conversations were cut at a turn, {total['turns_cut']:,} turns left out"
        )
    if total["turns_unanswered"]:
        cli.say(f"{total['turns_unanswered']:,} turns at the end of conversations have no answer and were left out")
    if total["refused"]:
        cli.say(f"{total['refused']:,} records were refused; {MANIFEST} lists them with file, line and reason")
    learned = "" if ledger["type"] == "prompt" else f", {total['learned_tokens_in_rows']:,} learned"
    fill = f"; fill {total['fill']:.2%}" if ledger["type"] == "sft" else ""
    cli.say(
        f"{total['copies']:,} examples of {total['in_rows']:,} records in {total['rows']:,} rows, "
        f"{total['tokens_in_rows']:,} tokens{learned}{fill}; {total['held_out']:,} records held out"
    )


def _same(checks: dict[str, tuple[int, int]], where: str) -> None:
    for name, (left, right) in checks.items():
        if left != right:
            raise UnbalancedError(f"the ledger does not balance: {name}{where}: {left} and {right}")
