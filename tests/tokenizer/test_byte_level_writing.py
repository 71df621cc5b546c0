"""The written file: what the base has stays where it is, and loading it again moves nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from colossal_llama2.tokenizer.byte_level_closing import ClosedMerges
from colossal_llama2.tokenizer.byte_level_model import read_byte_level
from colossal_llama2.tokenizer.byte_level_writing import expanded_content, to_tokenizer, write_byte_level
from colossal_llama2.tokenizer.folder import read_folder

CLOSED = ClosedMerges(("xq",), ("qx",), (("x", "q"), ("q", "x")), {})


@pytest.mark.parametrize("family", ["gpt2", "llama3", "qwen"])
def test_added_tokens_keep_their_ids_on_every_load(family: str, make_byte_level: Callable[[str], Path]) -> None:
    source = make_byte_level(family)
    base = Tokenizer.from_file(str(source / "tokenizer.json"))
    content = expanded_content(read_byte_level(base, source), CLOSED)
    once = to_tokenizer(content)
    again = Tokenizer.from_str(once.to_str())
    for tokenizer in (once, again):
        expected = {**base.get_vocab(), "xq": base.get_vocab_size(), "qx": base.get_vocab_size() + 1}
        assert tokenizer.get_vocab() == expected
        assert tokenizer.get_added_tokens_decoder().keys() == base.get_added_tokens_decoder().keys()
        assert tokenizer.post_processor is None or tokenizer.encode("").ids == base.encode("").ids
    assert content["model"]["merges"][-2:] == [["x", "q"], ["q", "x"]]
    assert "xq" not in base.get_vocab()


def test_settings_that_would_undo_it_are_dropped(make_byte_level: Callable[[str], Path], tmp_path: Path) -> None:
    source = make_byte_level("qwen")
    target = tmp_path / "target"
    target.mkdir()
    model = read_byte_level(Tokenizer.from_file(str(source / "tokenizer.json")), source)
    assert write_byte_level(target, read_folder(source), expanded_content(model, CLOSED)) == []
    config = json.loads((target / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "add_prefix_space" not in config
    assert config["eos_token"] == "<|im_end|>"
    assert config["added_tokens_decoder"].keys() == {str(index) for index in model.added}
    assert (target / "chat_template.jinja").read_bytes() == (source / "chat_template.jinja").read_bytes()
    assert write_byte_level(target, read_folder(make_byte_level("gpt2")), expanded_content(model, CLOSED)) == [
        "vocab.json", "merges.txt",
    ]  # fmt: skip
