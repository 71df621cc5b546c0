"""A saved conversation comes back as it was, and sets can be prepared of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama2.chat.talk.saving import load_conversations, save_conversations
from colossal_llama2.dataset.conversation import Turn
from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings, main
from colossal_llama2.errors import InputError

SAID = st.text(min_size=1, max_size=20).filter(str.strip)
PAIRS = st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3)


@given(pairs=PAIRS, system=st.sampled_from(["", "be kind"]), asked=st.booleans())
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, pairs: list, system: str, asked: bool
) -> None:  # type: ignore[type-arg]
    turns = [Turn(*turn) for user, model in pairs for turn in (("user", user), ("assistant", model))]
    turns = [*([Turn("system", system)] if system else []), *turns, *([Turn("user", "?")] if asked else [])]
    path = tmp_path_factory.mktemp("saved") / "a.jsonl"
    save_conversations({"m": turns, "n": turns}, path)
    assert load_conversations(path) == [turns, turns]
    assert json.loads(path.read_text(encoding="utf-8").split("\n")[0])["model"] == "m"


@pytest.mark.long
def test_prepare_dataset_takes_it(tmp_path: Path, llama_tokenizer_dir: Path) -> None:
    save_conversations({"m": [Turn("user", "你好"), Turn("assistant", "the fox")]}, tmp_path / "a.jsonl")
    settings = PrepareSetSettings(
        type="sft",
        data_input_dirs=str(tmp_path / "a.jsonl"),
        tokenizer_dir=llama_tokenizer_dir,
        data_arrow_output_dir=tmp_path / "set",
        chat_template="colossal",
        max_length=64,
    )
    main(settings)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert '"used": 1' in json.dumps(manifest)


def test_nothing_is_replaced_and_nothing_empty_saved(tmp_path: Path) -> None:
    said = [Turn("user", "a"), Turn("assistant", "b")]
    save_conversations({"m": said}, tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="exists already"):
        save_conversations({"m": said}, tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="not answered anything"):
        save_conversations({"m": said[:1]}, tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()


@pytest.mark.parametrize(
    "content", ["", "nonsense\n", '{"a": 1}\n', '{"messages": [{"from": "human", "content": ""}]}\n']
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError):
        load_conversations(tmp_path / "a.jsonl")
    with pytest.raises(InputError):
        load_conversations(tmp_path / "absent.jsonl")


def test_other_layouts_are_read_with_their_best_answer(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "p", "chosen": "good", "rejected": "bad"}\n{"instruction": "i", "input": "", "output": "o"}\n'
    )
    expected = [[Turn("user", "p"), Turn("assistant", "good")], [Turn("user", "i"), Turn("assistant", "o")]]
    assert load_conversations(tmp_path / "a.jsonl") == expected
