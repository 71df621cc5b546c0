"""The split of a jointly encoded text: tokens wholly inside the beginning, none that straddles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossal_llama2.tokenizer.encoder import Encoder
from colossal_llama2.tokenizer.loading import load_encoder
from colossal_llama2.tokenizer.piece_model import BYTE, SPACE_MARK, PieceModel, parse_piece_model

TEXT = st.text(
    alphabet=st.one_of(st.sampled_from(list("  ▁the quick fox今天气好龘😀é\n")), st.characters(codec="utf-8")),
    min_size=1,
    max_size=30,
)


def ends_by_walking(model: PieceModel, text: str, ids: list[int]) -> list[int]:
    """Find where each token ends, in characters (a byte ends with its character), by walking along the text."""
    place, ends, waiting = -1, [], 0  # -1: the dummy prefix is still to come
    for index in ids:
        entry = model.pieces[index]
        if entry.type == BYTE:
            if waiting == 0:
                waiting = len(text[place].encode())
            waiting -= 1
            ends.append(place + 1)
            place += waiting == 0
            continue
        for character in entry.piece:
            if place >= 0:
                assert character == text[place] or (character, text[place]) == (SPACE_MARK, " ")
            place += 1
        ends.append(place)
    assert place == len(text)
    return ends


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, data=st.data())
def test_split_counts_tokens_wholly_inside(
    text: str, data: st.DataObject, llama_tokenizer_dir: Path, piece_model_bytes: Callable[..., bytes]
) -> None:
    encoder = _cached_encoder(llama_tokenizer_dir)
    split = data.draw(st.integers(0, len(text)))
    encoded, counts, straddles = encoder.encode_with_seam([text], [split])
    ends = ends_by_walking(parse_piece_model(piece_model_bytes()), text, encoded.ids.tolist())
    assert counts.tolist() == [sum(end <= split for end in ends) if split else 0]
    assert straddles.tolist() == [0 < split < len(text) and split not in ends]
    assert encoder.encode_with_split([text], [split])[1].tolist() == counts.tolist()


def test_encoding_is_joint_and_by_text(llama_tokenizer_dir: Path) -> None:
    encoder = load_encoder(llama_tokenizer_dir)
    texts, splits = ["the quick fox", "the quick fox", "", "今天", "龘龘"], [4, 100, 0, 0, 1]
    encoded, counts = encoder.encode_with_split(texts, splits)
    assert encoded.ids.tolist() == encoder.encode(texts).ids.tolist()
    assert counts.dtype.name == "int32"
    # "the" and its space end at 4, but the space belongs to the token "▁quick"; 龘 is the dummy prefix and 3 bytes
    assert counts.tolist() == [1, encoded.offsets[2] - encoded.offsets[1], 0, 0, 4]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXT, data=st.data())
def test_byte_level_split(text: str, data: st.DataObject, byte_level_tokenizer_dir: Path) -> None:
    encoder = _cached_encoder(byte_level_tokenizer_dir)
    split = data.draw(st.integers(0, len(text)))
    encoded, counts, straddles = encoder.encode_with_seam([text], [split])
    tokens = encoder._tokenizer  # type: ignore[attr-defined]
    widths = [len(tokens.id_to_token(index)) for index in encoded.ids.tolist()]  # one letter a byte
    assert sum(widths) == len(text.encode())
    inside = len(text[:split].encode())
    ends = [sum(widths[: i + 1]) for i in range(len(widths))]
    assert counts.tolist() == [sum(end <= inside for end in ends)]
    assert straddles.tolist() == [0 < split < len(text) and inside not in ends]


def test_normalising_models_split_by_their_offsets(tmp_path: Path, piece_model_bytes: Callable[..., bytes]) -> None:
    (tmp_path / "tokenizer.model").write_bytes(
        piece_model_bytes(normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    )
    encoder = load_encoder(tmp_path)
    text = "the  ﬁve ｆｏｘ dog"
    whole, counts = encoder.encode_with_split([text], [len(text) - 4])
    assert counts[0] == len(encoder.encode([text[:-4]]).ids)
    assert counts[0] < len(whole.ids)


_ENCODERS: dict[Path, Encoder] = {}


def _cached_encoder(folder: Path) -> Encoder:
    if folder not in _ENCODERS:
        _ENCODERS[folder] = load_encoder(folder)
    return _ENCODERS[folder]
