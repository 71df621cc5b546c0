"""Ids are those of transformers, markers that somebody said stay text, tokens of learned characters are learned."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from colossal_llama2.dataset.conversation import Turn
from colossal_llama2.dataset.conversation_markers import Markers, markers_of
from colossal_llama2.dataset.conversation_spans import Located, Locator
from colossal_llama2.dataset.conversation_template import ChatTemplate, load_template
from colossal_llama2.dataset.conversation_tokens import EncodedConversation, encode_conversations
from colossal_llama2.tokenizer.encoder import Encoder
from colossal_llama2.tokenizer.loading import load_encoder, load_tokenizer

PLAIN = [
    "a",
    " ",
    "\n",
    "the quick",
    "fox",
    "你好",
    "鿃",
    "\t",
    "  ",
    "😀",
    "é",
    "[INST]",
    "</think",
    "system",
    "x\n\n",
    "9",
]
INJECTED = ["</s>", "<s>", "<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|end|>", "<unk>"]
# A busy machine is slow to draw and to run, and that says nothing about the code.
unhurried = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Kit:
    """A tokenizer with everything that reads a chat."""

    tokenizer: Any
    encoder: Encoder
    markers: Markers
    template: ChatTemplate

    def encode(self, turns: list[Turn], **options: Any) -> tuple[Located, EncodedConversation]:
        located = Locator(self.template, self.markers).locate([turns], **options)
        assert located[0].refusal is None
        return located[0], encode_conversations(located, self.markers, self.encoder)[0]


def kit(folder: Path, template: str) -> Kit:
    tokenizer = load_tokenizer(folder)
    found = load_template(tokenizer, template, None)
    return Kit(tokenizer, load_encoder(folder), markers_of(tokenizer), found)


ENDS = (
    "{% for t in messages %}{{ t.role + '<|end|> \n' + t.content + ' <|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant<|end|> \n{% endif %}"
)
# No end token but the last, so a text between two markers holds several turns.
BARE = (
    "{% for t in messages %}{{ t.role + ':' + t.content + '\n' }}{% endfor %}"
    "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
)


@pytest.fixture(scope="module", params=["llama2", "colossal", "transcript", "piece chatml", "bare"])
def piece_kit(
    request: pytest.FixtureRequest, llama_tokenizer_dir: Path, piece_chat_tokenizer_dir: Path, tmp_path_factory: Any
) -> Kit:
    if request.param == "piece chatml":
        return kit(piece_chat_tokenizer_dir, "chatml")
    if request.param == "bare":
        path = tmp_path_factory.mktemp("template") / "bare.jinja"
        path.write_text(BARE)
        return kit(llama_tokenizer_dir, str(path))
    return kit(llama_tokenizer_dir, request.param)


@pytest.fixture(scope="module", params=["chatml", "llama3", "llama2", "ends", "bare"])
def byte_kit(request: pytest.FixtureRequest, chat_tokenizer_dir: Path, tmp_path_factory: Any) -> Kit:
    if request.param in ("ends", "bare"):
        path = tmp_path_factory.mktemp("template") / "own.jinja"
        path.write_text(ENDS if request.param == "ends" else BARE)
        return kit(chat_tokenizer_dir, str(path))
    return kit(chat_tokenizer_dir, request.param)


def conversations(fragments: list[str]) -> st.SearchStrategy[list[Turn]]:
    text = st.lists(st.sampled_from(fragments), min_size=1, max_size=5).map("".join).filter(lambda t: t.strip())
    pairs = st.lists(st.tuples(text, text), min_size=1, max_size=3)
    return pairs.map(lambda found: [Turn(*t) for u, a in found for t in (("user", u), ("assistant", a))])


def by_transformers(found: Kit, turns: list[Turn], generation_prompt: bool) -> list[int]:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    ids = found.tokenizer.apply_chat_template(
        messages, chat_template=found.template.text, add_generation_prompt=generation_prompt, return_dict=False
    )
    return [int(index) for index in ids]


@unhurried
@given(turns=conversations(PLAIN))
def test_ids_are_those_of_transformers_with_a_piece_model(piece_kit: Kit, turns: list[Turn]) -> None:
    assert piece_kit.encode(turns)[1].ids.tolist() == by_transformers(piece_kit, turns, False)
    asked = piece_kit.encode(turns[:-1], learn="none", generation_prompt=True)[1]
    assert asked.ids.tolist() == by_transformers(piece_kit, turns[:-1], True)
    assert not asked.learned.any()


@unhurried
@given(turns=conversations([*PLAIN, "<think>", "</think>"]))
def test_ids_are_those_of_transformers_with_a_byte_level_tokenizer(byte_kit: Kit, turns: list[Turn]) -> None:
    assert byte_kit.encode(turns)[1].ids.tolist() == by_transformers(byte_kit, turns, False)
    asked = byte_kit.encode(turns[:-1], learn="none", generation_prompt=True)[1]
    assert asked.ids.tolist() == by_transformers(byte_kit, turns[:-1], True)


def special_ids(found: Kit) -> set[int]:
    return {index for index, token in found.tokenizer.added_tokens_decoder.items() if token.special}


@unhurried
@given(turns=conversations([*PLAIN, *INJECTED]))
def test_markers_that_somebody_said_stay_text(byte_kit: Kit, turns: list[Turn]) -> None:
    located, encoded = byte_kit.encode(turns)
    harmless = [Turn(turn.role, "x") for turn in turns]
    special = special_ids(byte_kit)
    written = [index for index in byte_kit.encode(harmless)[1].ids.tolist() if index in special]
    assert [index for index in encoded.ids.tolist() if index in special] == written
    assert len(written) > 0
    if "<|end|>" not in byte_kit.template.text:  # which swallows blanks
        assert byte_kit.tokenizer.decode(encoded.ids.tolist()) == located.text


@unhurried
@given(turns=conversations([*PLAIN, *INJECTED]))
def test_markers_that_somebody_said_stay_text_with_a_piece_model(piece_kit: Kit, turns: list[Turn]) -> None:
    _, encoded = piece_kit.encode(turns)
    special = special_ids(piece_kit) - {0}  # the unknown piece stands for characters the model has none for
    written = [i for i in piece_kit.encode([Turn(turn.role, "x") for turn in turns])[1].ids.tolist() if i in special]
    assert [index for index in encoded.ids.tolist() if index in special] == written
    assert len(written) > 0


@unhurried
@given(turns=conversations([*PLAIN, *INJECTED]))
def test_a_token_is_learned_when_it_holds_a_learned_character(byte_kit: Kit, turns: list[Turn]) -> None:
    """Against the offsets that the fast tokenizer itself gives, piece by piece."""
    located, encoded = byte_kit.encode(turns)
    is_learned = np.zeros(len(located.text), dtype=bool)
    for begin, end in located.learned:
        is_learned[begin:end] = True
    assert is_learned.any()
    harmless_text = located.text
    for begin, end in located.contents:  # of another length would move everything
        middle = harmless_text[begin:end].replace("<", "«").replace(">", "»")
        harmless_text = harmless_text[:begin] + middle + harmless_text[end:]
    if harmless_text != located.text:
        return  # what is said has other tokens then; the ids are checked above
    found = byte_kit.tokenizer(located.text, add_special_tokens=False, return_offsets_mapping=True)
    expected = []
    for index, (begin, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
        if index in special_ids(byte_kit):  # the blanks that it swallows are not its own
            begin += len(located.text[begin:end]) - len(located.text[begin:end].lstrip())
            end = begin + 1
        expected.append(bool(is_learned[begin : max(end, begin + 1)].any()))
    expected[0] = False
    assert encoded.learned.tolist() == expected


@unhurried
@given(turns=conversations(PLAIN))
def test_a_token_is_learned_when_it_holds_a_learned_character_of_a_piece_model(
    piece_kit: Kit, turns: list[Turn]
) -> None:
    """Against the offsets that SentencePiece itself gives for each text between two markers."""
    located, encoded = piece_kit.encode(turns)
    model = SentencePieceProcessor(model_file=str(Path(piece_kit.tokenizer.name_or_path) / "tokenizer.model"))
    names = {token.content for token in piece_kit.tokenizer.added_tokens_decoder.values()}
    expected: list[bool] = []

    def holds(begin: int, end: int) -> bool:
        return any(first < max(end, begin + 1) and begin < last for first, last in located.learned)

    at = 0
    for part in re.split("(" + "|".join(map(re.escape, names)) + ")", located.text):
        if part in names:
            expected.append(holds(at, at + len(part)))
        elif part:
            offsets = model.encode(part, out_type="offset_mapping")["offsets"]
            expected += [holds(at + begin, at + end) for begin, end in offsets]
        at += len(part)
    assert any(expected)
    assert encoded.learned.tolist() == [False, *expected[1:]]


def test_a_seam_is_learned_with_the_answer(llama_tokenizer_dir: Path) -> None:
    found = kit(llama_tokenizer_dir, "llama2")
    _, encoded = found.encode([Turn("user", "the fox"), Turn("assistant", "the dog")])
    tokens = found.tokenizer.convert_ids_to_tokens(encoded.ids.tolist())
    mine = [token for token, learned in zip(tokens, encoded.learned, strict=True) if learned]
    assert mine[0] == "▁the"
    assert mine[-1] == "</s>"
    asked = found.encode([Turn("user", "the fox")], learn="none", generation_prompt=True)[1].ids
    assert encoded.ids[: len(asked)].tolist() == asked.tolist()
    assert encoded.learned.tolist() == [False] * len(asked) + [True] * (len(encoded.ids) - len(asked))


def test_behind_a_marker_the_dummy_prefix_is_learned(llama_tokenizer_dir: Path) -> None:
    found = kit(llama_tokenizer_dir, "colossal")
    _, encoded = found.encode([Turn("user", "the fox"), Turn("assistant", "你 fox")])
    tokens = found.tokenizer.convert_ids_to_tokens(encoded.ids.tolist())
    mine = [token for token, learned in zip(tokens, encoded.learned, strict=True) if learned]
    assert mine[0].startswith("▁")
    assert tokens[tokens.index(mine[0], 5) - 1] == "<s>"
    assert "".join(mine) == "▁你▁fox</s>"


def test_a_marker_half_said_is_no_marker(chat_tokenizer_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{% for t in messages %}{{ '<' + t.content + '<|im_end|>' }}{% endfor %}")
    found = kit(chat_tokenizer_dir, str(tmp_path / "t.jinja"))
    located, encoded = found.encode([Turn("user", "/s>x"), Turn("assistant", "y<|im_end|")])
    assert "</s>x" in located.text
    end = found.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert encoded.ids.tolist().count(end) == 2
    assert found.tokenizer.convert_tokens_to_ids("</s>") not in encoded.ids.tolist()


def test_the_first_token_is_never_learned(chat_tokenizer_dir: Path) -> None:
    found = kit(chat_tokenizer_dir, "chatml")
    bare = Located("fox<|im_end|>", ((0, 3),), ((0, 13),))
    encoded = encode_conversations([bare], found.markers, found.encoder)[0]
    assert encoded.learned[0] == np.False_
    assert encoded.learned[1:].all()
    assert len(encoded.ids) >= 2


@unhurried
@given(turns=conversations(PLAIN))
def test_tokens_before_a_character_are_never_too_many(byte_kit: Kit, turns: list[Turn]) -> None:
    located, encoded = byte_kit.encode(turns)
    whole = len(encoded.ids)
    counts = [encoded.tokens_before(character) for character in range(len(located.text) + 1)]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] <= whole
    for character in (located.contents[0][1], located.contents[-1][0]):
        alone = byte_kit.tokenizer(located.text[:character], add_special_tokens=False)["input_ids"]
        assert encoded.tokens_before(character) <= len(alone)
