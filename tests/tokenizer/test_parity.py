"""The proof finds a fast tokenizer that is wrong, and passes one that is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import normalizers

from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.fast import to_fast
from colossal_llama2.tokenizer.parity import adversarial_texts, find_mismatches
from colossal_llama2.tokenizer.piece_model import parse_piece_model


def test_right_passes_and_wrong_is_found(piece_model_bytes: Callable[..., bytes]) -> None:
    base = parse_piece_model(piece_model_bytes())
    model = expand_model(base, ["今天", "天气"])
    new_ids = range(len(base.pieces), len(model.pieces))
    processor = SentencePieceProcessor(model_proto=model.SerializeToString())
    fast = to_fast(model, [], Path("m"))
    mismatches, compared = find_mismatches(processor, fast, adversarial_texts(model, new_ids))
    assert mismatches == []
    assert compared > 2000
    assert not fast.encode_special_tokens

    # what transformers 5 does to Llama: no prefix before a text that begins with a space
    fast.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
    mismatches, _ = find_mismatches(processor, fast, adversarial_texts(model, new_ids), limit=5)
    assert len(mismatches) == 5
    assert mismatches[0].expected == tuple(processor.encode(mismatches[0].text)) != mismatches[0].actual


def test_every_new_piece_stands_in_every_frame(piece_model_bytes: Callable[..., bytes]) -> None:
    model = parse_piece_model(piece_model_bytes())
    without, one = (list(adversarial_texts(model, ids, num_random=3)) for ids in ([], [len(model.pieces) - 1]))
    assert len(one) == len(without) + 12
    assert list(adversarial_texts(model, [], num_random=3)) == without
