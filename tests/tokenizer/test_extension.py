"""An extension is recognised, and everything that only looks like one is refused with what differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import pre_tokenizers

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.extension import read_extension
from colossal_llama2.tokenizer.piece_model import NORMAL, PieceModel, parse_piece_model

NEW = ["今天", "天气", "▁今天", "foxdog", "今天天气"]


@pytest.fixture
def folders(tmp_path: Path, llama_tokenizer_dir: Path) -> tuple[Path, Path, PieceModel]:
    base, extended = (Path(shutil.copytree(llama_tokenizer_dir, tmp_path / name)) for name in ("base", "extended"))
    model = expand_model(parse_piece_model((base / "tokenizer.model").read_bytes()), NEW)
    (extended / "tokenizer.model").write_bytes(model.SerializeToString())
    return base, extended, model


def test_new_tokens_are_cut_by_the_base_without_dummy_prefix(folders: tuple[Path, Path, PieceModel]) -> None:
    base, extended, model = folders
    extension = read_extension(base, extended)
    processor = SentencePieceProcessor(model_file=str(base / "tokenizer.model"))
    assert (extension.num_base, extension.num_tokens) == (len(processor), len(processor) + len(NEW))
    ids, offsets = extension.base_tokens.ids.tolist(), extension.base_tokens.offsets.tolist()
    for index in range(len(NEW)):
        piece = model.pieces[extension.num_base + index].piece
        cut = [processor.id_to_piece(token) for token in ids[offsets[index] : offsets[index + 1]]]
        assert "".join(cut) == piece  # "▁今天" has its own mark, "今天" has none
    assert len(offsets) == len(NEW) + 1


def test_a_tokenizer_extends_itself(llama_tokenizer_dir: Path, byte_level_tokenizer_dir: Path) -> None:
    for folder in (llama_tokenizer_dir, byte_level_tokenizer_dir):
        extension = read_extension(folder, folder)
        assert extension.num_tokens == extension.num_base
        assert len(extension.base_tokens.ids) == 0


def _swap_two_pieces(model: PieceModel) -> None:
    model.pieces[300].piece, model.pieces[301].piece = model.pieces[301].piece, model.pieces[300].piece


def _change_a_type(model: PieceModel) -> None:
    model.pieces[300].type = 4


def _swap_two_scores(model: PieceModel) -> None:
    model.pieces[300].score, model.pieces[301].score = model.pieces[301].score, model.pieces[300].score


def _drop_tokens(model: PieceModel) -> None:
    del model.pieces[300:]


def _change_the_prefix(model: PieceModel) -> None:
    model.normalizer_spec.add_dummy_prefix = False


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_swap_two_pieces, "token 300 is .* instead of"),
        (_change_a_type, "token 300 is .* of another type"),
        (_swap_two_scores, "merges come in another order"),
        (_drop_tokens, "fewer than"),
        (_change_the_prefix, "add_dummy_prefix differs"),
    ],
)
def test_what_is_no_extension_is_refused(
    change: Callable[[PieceModel], None], reason: str, folders: tuple[Path, Path, PieceModel]
) -> None:
    base, extended, model = folders
    change(model)
    (extended / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=f"not an extension .*{reason}"):
        read_extension(base, extended)


def test_merges_above_the_bases_are_an_extension_too(folders: tuple[Path, Path, PieceModel]) -> None:
    base, extended, model = folders
    model.pieces.add(piece="dogfox", score=5, type=NORMAL)
    (extended / "tokenizer.model").write_bytes(model.SerializeToString())
    assert read_extension(base, extended).num_tokens == len(model.pieces)


def test_the_two_kinds_do_not_mix(llama_tokenizer_dir: Path, byte_level_tokenizer_dir: Path) -> None:
    with pytest.raises(InputError, match=r"holds no tokenizer\.model"):
        read_extension(llama_tokenizer_dir, byte_level_tokenizer_dir)
    with pytest.raises(InputError, match=r"holds no tokenizer\.model"):
        read_extension(byte_level_tokenizer_dir, llama_tokenizer_dir)


def _with(folder: Path, change: Callable[[Any], None], target: Path) -> Path:
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    target.mkdir()
    (target / "tokenizer.json").write_text(json.dumps(content))
    return target


def test_byte_level_extension(byte_level_tokenizer_dir: Path, tmp_path: Path) -> None:
    # three bytes, each written as one letter of the byte alphabet
    (letters, _), *_ = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("龘")
    assert len(letters) == 3

    def extend(content: Any) -> None:
        vocab, size = content["model"]["vocab"], len(content["model"]["vocab"])
        assert letters[:2] not in vocab
        vocab[letters[:2]], vocab[letters] = size, size + 1
        content["model"]["merges"] += [[letters[0], letters[1]], [letters[:2], letters[2]]]

    extended = _with(byte_level_tokenizer_dir, extend, tmp_path / "extended")
    extension = read_extension(byte_level_tokenizer_dir, extended)
    assert extension.num_tokens == extension.num_base + 2
    vocab = json.loads((byte_level_tokenizer_dir / "tokenizer.json").read_text())["model"]["vocab"]
    assert extension.base_tokens.ids.tolist() == [vocab[letter] for letter in letters[:2] + letters]
    assert extension.base_tokens.offsets.tolist() == [0, 2, 5]


def test_byte_level_merges_in_another_order_are_refused(byte_level_tokenizer_dir: Path, tmp_path: Path) -> None:
    def reverse(content: Any) -> None:
        content["model"]["merges"].reverse()

    other = _with(byte_level_tokenizer_dir, reverse, tmp_path / "other")
    with pytest.raises(InputError, match="another order"):
        read_extension(byte_level_tokenizer_dir, other)


@pytest.mark.parametrize(
    ("option", "value"), [("ignore_merges", True), ("dropout", 0.5), ("fuse_unk", True), ("byte_fallback", True)]
)
def test_byte_level_options_must_agree(
    option: str, value: object, byte_level_tokenizer_dir: Path, tmp_path: Path
) -> None:
    other = _with(
        byte_level_tokenizer_dir, lambda content: content["model"].update({option: value}), tmp_path / "other"
    )
    with pytest.raises(InputError, match=f"{option} differs"):
        read_extension(byte_level_tokenizer_dir, other)


def test_a_special_token_must_stay_one(byte_level_tokenizer_dir: Path, tmp_path: Path) -> None:
    def demote(content: Any) -> None:
        content["added_tokens"][1]["special"] = False

    def forget(content: Any) -> None:
        del content["added_tokens"][1]

    for change in (demote, forget):
        other = _with(byte_level_tokenizer_dir, change, tmp_path / change.__name__)
        with pytest.raises(InputError, match=r"token 1 is '<\|end\|>' of another type"):
            read_extension(byte_level_tokenizer_dir, other)


def test_gaps_are_named(byte_level_tokenizer_dir: Path, tmp_path: Path) -> None:
    def leave_a_gap(content: Any) -> None:
        content["model"]["vocab"]["zzz"] = len(content["model"]["vocab"]) + 1

    other = _with(byte_level_tokenizer_dir, leave_a_gap, tmp_path / "other")
    with pytest.raises(InputError, match="no token has id 500, but 'zzz' has 501"):
        read_extension(byte_level_tokenizer_dir, other)
