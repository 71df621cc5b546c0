"""A piece is reachable when its own text gives it, and the report says what stands in the way otherwise."""

from __future__ import annotations

from collections.abc import Callable

from colossal_llama2.tokenizer.expand import expand_model
from colossal_llama2.tokenizer.piece_model import parse_piece_model
from colossal_llama2.tokenizer.reachability import unreachable_pieces


def test_reachable_blocked_and_beaten(piece_model_bytes: Callable[..., bytes]) -> None:
    model = parse_piece_model(piece_model_bytes())
    size = len(model.pieces)
    expanded = expand_model(model, ["今天", "天气", "▁今天", "今天气", "天气很好"])
    found = unreachable_pieces(expanded, range(size, len(expanded.pieces)))
    # 今天气 is 今天 and 气 joined; of 天气很好 neither 天气很 nor 很好 is a piece
    assert [item.piece for item in found] == ["天气很好"]
    assert found[0].reason == "no two pieces join to it"
    assert found[0].encoded_as == ("天气", "很", "好")
    assert expanded.pieces[found[0].id].piece == "天气很好"


def test_another_merge_may_come_first(piece_model_bytes: Callable[..., bytes]) -> None:
    model = parse_piece_model(piece_model_bytes())
    size = len(model.pieces)
    # 今天气很 is 今天 + 气很, but 天气 is joined before either
    expanded = expand_model(model, ["天气", "今天", "气很", "今天气很"])
    assert not unreachable_pieces(expanded, [size, size + 1, size + 2])
    blocked = unreachable_pieces(expanded, [size + 3])
    assert [(item.reason, item.encoded_as) for item in blocked] == [("another merge comes first", ("今", "天气", "很"))]
    assert unreachable_pieces(expanded, []) == []
