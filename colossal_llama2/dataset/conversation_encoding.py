"""Records to token ids: read, rendered, encoded, cut where too long, and each of them counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from colossal_llama2.dataset.conversation import (
    ASSISTANT,
    USER,
    Example,
    Place,
    Turn,
    best_conversation,
    cut_points,
)
from colossal_llama2.dataset.conversation_files import Chunk, read_chunk, with_skip
from colossal_llama2.dataset.conversation_layouts import read_record
from colossal_llama2.dataset.conversation_markers import Markers
from colossal_llama2.dataset.conversation_spans import Learn, Located, Locator
from colossal_llama2.dataset.conversation_template import ChatTemplate
from colossal_llama2.dataset.conversation_tokens import EncodedConversation, encode_conversations
from colossal_llama2.errors import InputError
from colossal_llama2.jsonl import parse_record
from colossal_llama2.tokenizer.encoder import Encoder

SetType = Literal["sft", "preference", "prompt"]
LEARNED: Final[dict[SetType, Learn]] = {"sft": "all", "preference": "last", "prompt": "none"}
TOO_LONG: Final = "longer than --max_length in its first exchange"
PAIR_TOO_LONG: Final = "an answer with its prompt is longer than --max_length"
PROMPT_TOO_LONG: Final = "longer than --max_length"
SAME_ANSWERS: Final = "its answers are all the same"
BAD_ANSWER: Final = "its only answer is called a bad one"


@dataclass(frozen=True)
class EncodingJob:
    """What a worker needs to encode chunks.

    Attributes:
        type: what the set is for.
        template: the chat template.
        markers: the tokenizer's added tokens.
        tokenizer_dir: the tokenizer's folder, and
        tokenizer_key: what it must still say.
        system: system turn for conversations that have none; empty for no such thing.
        max_length: tokens a conversation may have.
        keep_end: of prompts that are too long, keep the end instead of leaving them out.
        stage: examples whose key is from the first up to the second number (of 2**64) belong to this set's stage.
        skip_bad_records: list bad records instead of stopping at the first.
        scratch_dir: where chunks are kept until the set is written.
    """

    type: SetType
    template: ChatTemplate
    markers: Markers
    tokenizer_dir: Path
    tokenizer_key: str
    system: str
    max_length: int
    keep_end: bool
    stage: tuple[int, int]
    skip_bad_records: bool
    scratch_dir: Path


@dataclass
class Tally:
    """What became of records; everything in it adds up over the chunks of a file.

    Attributes:
        counts: records, turns and tokens by what became of them.
        left_out: reason to number of records.
        passed_over: field to number of records in which it holds something that is not read.
        refused: (line, reason) of bad records.
        left_out_lines: (line, reason) of records left out.
    """

    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[int, str]] = field(default_factory=list)
    left_out_lines: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class Draft:
    """An example on its way.

    Attributes:
        line: its line in the file.
        raw: the line.
        key: see `Example`, of the record as it stands.
        example: the example.
        conversations: what is rendered: one conversation an answer that is used.
        ranks: the rank of each.
        passed_over: fields that hold something and are not read.
        located: each rendered.
        encoded: each encoded.
    """

    line: int
    raw: bytes
    key: int
    example: Example
    conversations: list[list[Turn]]
    ranks: list[int]
    passed_over: tuple[str, ...] = ()
    located: list[Located] = field(default_factory=list)
    encoded: list[EncodedConversation] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens of all its conversations."""
        return sum(len(one.ids) for one in self.encoded)

    @property
    def num_learned(self) -> int:
        """Learned tokens of all its conversations."""
        return sum(int(one.learned.sum()) for one in self.encoded)


class ChunkEncoder:
    """Encodes the records of chunks.

    Args:
        job: the settings.
        encoder: the tokenizer's encoder of plain text.
    """

    def __init__(self, job: EncodingJob, encoder: Encoder) -> None:
        self._job, self._encoder = job, encoder
        self._locator = Locator(job.template, job.markers)

    def encode(self, chunk: Chunk) -> tuple[list[Draft], Tally]:
        """Encode a chunk's records, in their order.

        Raises:
            InputError: a record is bad, and bad ones are not to be skipped.
        """
        tally = Tally()
        drafts = self._rendered(self._read(chunk, tally), chunk, tally)
        flat = [one for draft in drafts for one in draft.located]
        encoded = iter(encode_conversations(flat, self._job.markers, self._encoder))
        done = []
        for draft in drafts:
            draft.encoded = [next(encoded) for _ in draft.located]
            tally.passed_over.update(draft.passed_over)
            tally.counts["turns"] += draft.example.num_turns
            reason = self._unwanted(draft.example) or self._fit(draft, tally)
            if reason:
                tally.counts["turns_left_out"] += draft.example.num_turns
                tally.left_out[reason] += 1
                tally.left_out_lines.append((draft.line, reason))
            else:
                self._count(draft, tally)
                done.append(draft)
        tally.refused.sort()
        return done, tally

    def _read(self, chunk: Chunk, tally: Tally) -> list[Draft]:
        drafts = []
        low, high = self._job.stage
        for line, raw in read_chunk(chunk):
            tally.counts["records"] += 1
            place = Place(chunk.file.path, line)
            try:
                read = read_record(parse_record(raw, chunk.file.path, line), chunk.layout, place)
                key = read.example.key  # of the record as it stands: --system moves nothing to another stage
                if low <= key < high:
                    example = read.example.with_system(self._job.system)
                    conversations = self._conversations(example, place)
                    ranks = [answer.rank for answer in example.answers] if self._job.type == "preference" else [0]
                    drafts.append(Draft(line, raw, key, example, conversations, ranks, read.passed_over))
                    tally.counts["system_turns_added"] += example is not read.example
                else:
                    tally.counts["of_other_stages"] += 1
            except InputError as error:
                self._refuse(place, error, tally)
        return drafts

    def _conversations(self, example: Example, place: Place) -> list[list[Turn]]:
        if self._job.type == "prompt":
            if not example.turns or example.turns[-1].role != USER:
                raise place.complaint("does not end with a turn that can be answered", "remove the record")
            return [list(example.turns)]
        if self._job.type == "sft":
            turns = best_conversation(example)
            if not turns:
                raise place.complaint("holds nothing that an assistant says", "remove the record")
            return [turns]
        if len({answer.rank for answer in example.answers}) < 2 and not example.labelled:
            raise place.complaint("holds no two answers of which one is better", "remove the record")
        return [[*example.turns, Turn(ASSISTANT, answer.content)] for answer in example.answers]

    def _rendered(self, drafts: list[Draft], chunk: Chunk, tally: Tally) -> list[Draft]:
        """Render all conversations; records that the template cannot be followed on are bad ones."""
        found = iter(self._locate([turns for draft in drafts for turns in draft.conversations]))
        good = []
        for draft in drafts:
            draft.located = [next(found) for _ in draft.conversations]
            refusal = next((one.refusal for one in draft.located if one.refusal), None)
            if refusal is None:
                good.append(draft)
            else:
                place = Place(chunk.file.path, draft.line)
                self._refuse(place, place.complaint(refusal, "remove the record"), tally)
        return good

    def _locate(self, conversations: Sequence[Sequence[Turn]]) -> list[Located]:
        prompts = self._job.type == "prompt"
        return self._locator.locate(conversations, LEARNED[self._job.type], generation_prompt=prompts)

    def _unwanted(self, example: Example) -> str | None:
        if self._job.type == "preference" and not example.labelled:
            return SAME_ANSWERS if len({answer.content for answer in example.answers}) == 1 else None
        bad = self._job.type == "sft" and bool(example.answers) and min(a.rank for a in example.answers) > 0
        return BAD_ANSWER if bad else None

    def _fit(self, draft: Draft, tally: Tally) -> str | None:
        """Make an example fit `max_length`; if it cannot be, return why it is left out."""
        longest = max(len(one.ids) for one in draft.encoded)
        if longest <= self._job.max_length:
            return None
        if self._job.type == "sft":
            before = len(draft.conversations[0])
            if not self._cut_at_turn(draft):
                return TOO_LONG
            tally.counts["turns_cut"] += before - len(draft.conversations[0])
            tally.counts["conversations_cut"] += 1
            return None
        if self._job.type == "prompt" and self._job.keep_end:
            tally.counts["prompts_cut"] += 1
            tally.counts["prompt_tokens_cut"] += longest - self._job.max_length
            one = draft.encoded[0]
            draft.encoded = [
                replace(one, ids=one.ids[-self._job.max_length :], learned=one.learned[-self._job.max_length :])
            ]
            return None
        return PAIR_TOO_LONG if self._job.type == "preference" else PROMPT_TOO_LONG

    def _cut_at_turn(self, draft: Draft) -> bool:
        """Keep as many exchanges from the beginning as fit; tell whether any does.

        The shorter conversation is rendered again: a template may write its last turn otherwise than one in the middle.
        """
        turns, whole, located = draft.conversations[0], draft.encoded[0], draft.located[0]
        for point in reversed(cut_points(turns)[:-1]):
            # No fewer tokens than these stand before the cut, so most cuts need not be tried.
            if whole.tokens_before(located.contents[point - 1][1]) > self._job.max_length:
                continue
            shorter = self._locate([turns[:point]])
            if shorter[0].refusal is None:
                encoded = encode_conversations(shorter, self._job.markers, self._encoder)
                if len(encoded[0].ids) <= self._job.max_length:
                    draft.conversations, draft.located, draft.encoded = [turns[:point]], shorter, encoded
                    return True
        return False

    def _count(self, draft: Draft, tally: Tally) -> None:
        example, counts = draft.example, tally.counts
        turns = sum(map(len, draft.conversations))
        if self._job.type == "preference":  # the turns before the answers are in the conversation of each
            turns -= len(example.turns) * (len(draft.conversations) - 1)
        counts["used"] += 1
        counts["turns_kept"] += turns
        if self._job.type == "sft" and not example.answers:
            counts["turns_unanswered"] += len(example.turns) - len(best_conversation(example))
        unused = {"sft": max(len(example.answers) - 1, 0), "prompt": len(example.answers), "preference": 0}
        counts["answers_not_used"] += unused[self._job.type]
        counts["sequences"] += len(draft.encoded)
        counts["tokens"] += draft.num_tokens
        counts["learned_tokens"] += draft.num_learned
        counts["turns_without_end_token"] += sum(one.unended for one in draft.located)
        said = (turn.content for conversation in draft.conversations for turn in conversation)
        counts["with_marker_text"] += any(self._job.markers.stand_in(content) for content in said)

    def _refuse(self, place: Place, error: InputError, tally: Tally) -> None:
        if not self._job.skip_bad_records:
            raise place.complaint(error.what, with_skip(error.remedy)) from None
        tally.counts["refused"] += 1
        tally.refused.append((place.line, error.what))
