"""What is written loads alike by both readers, keeps the source's settings, and drops what would undo it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from colossal_llama2.tokenizer.folder import read_folder
from colossal_llama2.tokenizer.loading import build_fast, load_tokenizer, read_model, special_tokens
from colossal_llama2.tokenizer.writing import write_tokenizer


def test_written_folder(llama_tokenizer_dir: Path, tmp_path: Path) -> None:
    source, target = Path(shutil.copytree(llama_tokenizer_dir, tmp_path / "source")), tmp_path / "target"
    target.mkdir()
    config = json.loads((source / "tokenizer_config.json").read_text())
    extra = {"legacy": True, "sp_model_kwargs": {}, "auto_map": {"AutoTokenizer": "x.Y"}, "padding_side": "left"}
    (source / "tokenizer_config.json").write_text(json.dumps({**config, **extra, "extra_special_tokens": ["[U]"]}))
    folder = read_folder(source)
    model = read_model(folder)
    write_tokenizer(target, folder, model, build_fast(folder, model), special_tokens(folder, model))

    written = json.loads((target / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["padding_side"] == "left"
    assert {"legacy", "sp_model_kwargs", "auto_map"}.isdisjoint(written)
    assert (target / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()

    ours, auto = load_tokenizer(target), AutoTokenizer.from_pretrained(target)
    assert auto.padding_side == ours.padding_side == "left"
    assert auto.convert_tokens_to_ids("[U]") == ours.convert_tokens_to_ids("[U]") == len(model.pieces)
    for text in ("the  fox", " leading", "[U]今天", "a</s>b"):
        assert auto(text)["input_ids"] == ours(text)["input_ids"] == load_tokenizer(source)(text)["input_ids"]
    # the normalizer that transformers holds is the one in the file, not one of its own
    assert str(auto.backend_tokenizer.normalizer) == str(Tokenizer.from_file(str(target / "tokenizer.json")).normalizer)
