"""The references know what their tokens stand for, or say that they do not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from colossal_llama2.tokenizer.loading import load_encoder
from colossal_llama2.tokenizer.reference_encoders import PieceEncoder
from colossal_llama2.tokenizer.seams import find_seam_in

TEXT = "the  <tool> e\u0301 今天 <|end|>😀 fox"


@pytest.fixture
def changed_folder(tmp_path: Path, byte_level_tokenizer_dir: Path) -> Callable[..., Path]:
    """Give a function that writes the byte-level tokenizer with something changed."""

    def change(**changes: Any) -> Path:
        folder = Path(shutil.copytree(byte_level_tokenizer_dir, tmp_path / "changed", dirs_exist_ok=True))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        tokenizer.add_tokens([AddedToken("<tool>", lstrip=True)])
        tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    return change


@pytest.mark.parametrize(
    ("changes", "has_widths"),
    [
        ({}, True),
        ({"normalizer": normalizers.NFC()}, False),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, False),
        ({"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(False)])}, True),
        ({"pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()])}, False),
    ],
)
def test_seams_with_and_without_widths(
    changes: dict[str, Any], has_widths: bool, changed_folder: Callable[..., Path]
) -> None:
    encoder = load_encoder(changed_folder(**changes))
    assert (encoder._widths is not None) == has_widths
    for split in range(1, len(TEXT)):
        _, counts, straddles = encoder.encode_with_seam([TEXT], [split])
        assert (int(counts[0]), bool(straddles[0])) == find_seam_in(encoder._spans(TEXT), split)


def test_widths_of_pieces(llama_tokenizer_dir: Path) -> None:
    encoder = load_encoder(llama_tokenizer_dir)
    assert isinstance(encoder, PieceEncoder)
    widths = encoder._widths
    assert widths is not None
    assert widths.prefix == 1
    assert widths.widths[:3].tolist() == [-1, -1, -1]  # unknown, bos, eos
    pieces = [encoder._processor.id_to_piece(index) for index in range(encoder.num_tokens)]
    assert widths.widths[pieces.index("<0x0A>")] == 1
    assert widths.widths[pieces.index("▁the")] == 4
    assert widths.widths[pieces.index("今")] == 3


def test_a_text_encoded_in_many_is_the_text_encoded_alone(llama_tokenizer_dir: Path) -> None:
    encoder = load_encoder(llama_tokenizer_dir)
    texts = ["the fox", "", "今天"]
    together = encoder.encode(texts)
    for index, text in enumerate(texts):
        assert together.of(index).tolist() == encoder.encode([text]).ids.tolist()
