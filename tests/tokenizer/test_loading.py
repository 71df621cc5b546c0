"""Every kind of tokenizer folder opens by the same door, and what is not one is refused in a sentence."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.loading import load_encoder, load_tokenizer, tokenizer_fingerprint

TEXTS = ["the quick  fox", " leading", "今天天气很好", "</s> is text\n<s>", "", "a\tb 😀"]


@pytest.fixture
def writable(tmp_path: Path, llama_tokenizer_dir: Path) -> Path:
    return Path(shutil.copytree(llama_tokenizer_dir, tmp_path / "tok"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_tokenizer_puts_bos_before_a_text_and_keeps_the_template(llama_tokenizer_dir: Path) -> None:
    tokenizer = load_tokenizer(llama_tokenizer_dir)
    processor = SentencePieceProcessor(model_file=str(llama_tokenizer_dir / "tokenizer.model"))
    for text in (text for text in TEXTS if "<" not in text):
        assert tokenizer(text)["input_ids"] == [1, *processor.encode(text)]
    assert tokenizer.model_max_length == 512
    assert tokenizer.pad_token is None
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "[user] hi</s>"
    assert tokenizer.decode(tokenizer("the fox").input_ids, skip_special_tokens=True) == "the fox"


def test_model_file_alone_is_enough(tmp_path: Path, llama_tokenizer_dir: Path) -> None:
    shutil.copy(llama_tokenizer_dir / "tokenizer.model", tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    assert tokenizer("the").input_ids[0] == tokenizer.bos_token_id == 1


def test_bos_and_eos_follow_the_settings(writable: Path) -> None:
    change_config(writable, add_bos_token=False, add_eos_token=True)
    ids = load_tokenizer(writable)("the fox").input_ids
    assert ids[0] != 1
    assert ids[-1] == 2


@pytest.mark.parametrize("way", ["added_tokens_decoder", "added_tokens.json", "named"])
def test_tokens_beyond_the_pieces_keep_their_ids(writable: Path, way: str) -> None:
    size = load_encoder(writable).num_tokens
    change_config(writable, pad_token="<pad>")
    if way == "added_tokens_decoder":
        change_config(writable, added_tokens_decoder={str(size): {"content": "<pad>", "special": True}})
    elif way == "added_tokens.json":
        (writable / "added_tokens.json").write_text(json.dumps({"<pad>": size}))
    encoder, tokenizer = load_encoder(writable), load_tokenizer(writable)
    assert encoder.num_tokens == len(tokenizer) == size + 1
    assert encoder.pad_token_id == tokenizer.pad_token_id == size
    assert size not in encoder.encode(["a <pad> b"]).ids


def test_encoder_equals_sentencepiece_and_keeps_special_text_as_text(llama_tokenizer_dir: Path) -> None:
    encoder = load_encoder(llama_tokenizer_dir, num_threads=2)
    processor = SentencePieceProcessor(model_file=str(llama_tokenizer_dir / "tokenizer.model"))
    encoded = encoder.encode(TEXTS)
    assert encoded.ids.dtype.name == "int32"
    assert encoded.offsets.dtype.name == "int64"
    parts = [encoded.ids[a:b].tolist() for a, b in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True)]
    assert parts == [processor.encode(text) for text in TEXTS]
    assert not {1, 2} & set(encoded.ids.tolist())
    assert encoder.encode([]).offsets.tolist() == [0]


def test_byte_level_tokenizers_load_too(byte_level_tokenizer_dir: Path) -> None:
    encoder, tokenizer = load_encoder(byte_level_tokenizer_dir), load_tokenizer(byte_level_tokenizer_dir)
    assert encoder.num_tokens == len(tokenizer)
    assert (encoder.bos_token_id, encoder.eos_token_id, encoder.pad_token_id) == (0, 1, None)
    texts = ["the fox", "<|end|> is text", "", "今天 😀"]
    encoded = encoder.encode(texts)
    assert not {0, 1} & set(encoded.ids.tolist())
    for index, text in enumerate(texts):
        ids = encoded.ids[encoded.offsets[index] : encoded.offsets[index + 1]].tolist()
        assert tokenizer.decode(ids) == text


def test_encoders_travel_to_worker_processes(llama_tokenizer_dir: Path, byte_level_tokenizer_dir: Path) -> None:
    for folder in (llama_tokenizer_dir, byte_level_tokenizer_dir):
        encoder = load_encoder(folder)
        again = pickle.loads(pickle.dumps(encoder))
        assert again.fingerprint == encoder.fingerprint
        assert again.encode(TEXTS).ids.tolist() == encoder.encode(TEXTS).ids.tolist()


def test_fingerprint_follows_what_decides_ids(writable: Path, byte_level_tokenizer_dir: Path, tmp_path: Path) -> None:
    before = tokenizer_fingerprint(writable)
    change_config(writable, model_max_length=7)
    assert tokenizer_fingerprint(writable) == before == load_encoder(writable).fingerprint
    with (writable / "tokenizer.model").open("ab") as file:
        file.write(b"\x0a\x03\x0a\x01\x7e")  # one more piece
    assert tokenizer_fingerprint(writable) != before
    content = json.loads((byte_level_tokenizer_dir / "tokenizer.json").read_text())
    other = tmp_path / "json"
    other.mkdir()
    (other / "tokenizer.json").write_text(json.dumps(content, indent=7))
    assert tokenizer_fingerprint(other) == tokenizer_fingerprint(byte_level_tokenizer_dir)
    content["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(byte_level_tokenizer_dir)


def test_a_marker_that_the_model_would_cut_out_of_text_stays_text(tmp_path: Path, piece_model_bytes: Any) -> None:
    (tmp_path / "tokenizer.model").write_bytes(
        piece_model_bytes(user_defined_symbols="<start>", add_dummy_prefix=False)
    )
    plain = load_encoder(tmp_path).encode(["a<start>b"]).ids.tolist()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_special_tokens": ["<start>"]}))
    marked = load_encoder(tmp_path).encode(["a<start>b"]).ids.tolist()
    marker = load_tokenizer(tmp_path).convert_tokens_to_ids("<start>")
    assert marker in plain
    assert marker not in marked
    assert marker in load_tokenizer(tmp_path)("a<start>b").input_ids


@pytest.mark.parametrize("load", [load_tokenizer, load_encoder, tokenizer_fingerprint])
def test_what_is_not_a_tokenizer_folder_is_a_users_mistake(load: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "absent")
    with pytest.raises(InputError, match="holds neither"):
        load(tmp_path)


@pytest.mark.parametrize("load", [load_tokenizer, load_encoder])
@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_is_named(load: Any, name: str, writable: Path) -> None:
    if name == "tokenizer.json":
        (writable / "tokenizer.model").unlink()
    (writable / name).write_text("{broken")
    with pytest.raises(InputError, match=name):
        load(writable)
