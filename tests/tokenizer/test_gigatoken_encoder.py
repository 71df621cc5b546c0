"""gigatoken gives the reference's ids on any text, by any entry, in any process; skipped where it is not installed."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from colossal_llama2.tokenizer import gigatoken_encoder
from colossal_llama2.tokenizer.encoder import EncodedTexts, Encoder
from colossal_llama2.tokenizer.gigatoken_encoder import GigatokenEncoder
from colossal_llama2.tokenizer.gigatoken_model import pieces_and_merges
from colossal_llama2.tokenizer.loading import load_encoder

pytest.importorskip("gigatoken")

FOLDERS = ("llama", "no_prefix", "user_defined", "byte_level", "added_token")
MARKS = ["<s>", "</s>", "<unk>", "<|end|>", "<tool>", "<0x0A>", "▁", "  ", " ", "\n", "\x00", "😀", "\u0301", "今", ""]


@pytest.fixture(scope="module")
def encoders(
    tmp_path_factory: pytest.TempPathFactory,
    llama_tokenizer_dir: Path,
    byte_level_tokenizer_dir: Path,
    piece_model_bytes: Callable[..., bytes],
) -> dict[str, GigatokenEncoder]:
    """Give proved encoders of several kinds of tokenizer."""
    root = tmp_path_factory.mktemp("tokenizers")
    options = {"no_prefix": {}, "user_defined": {"user_defined_symbols": "<tool>,x▁y"}}
    for name, further in options.items():
        (root / name).mkdir()
        (root / name / "tokenizer.model").write_bytes(piece_model_bytes(add_dummy_prefix=False, **further))
    added = shutil.copytree(byte_level_tokenizer_dir, root / "added_token")
    tokenizer = Tokenizer.from_file(str(added / "tokenizer.json"))
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save(str(added / "tokenizer.json"))
    folders = {"llama": llama_tokenizer_dir, "byte_level": byte_level_tokenizer_dir}
    loaded = {name: load_encoder(folders.get(name, root / name), kind="gigatoken") for name in FOLDERS}
    return {name: encoder for name, encoder in loaded.items() if isinstance(encoder, GigatokenEncoder)}


def parts(encoded: EncodedTexts) -> list[list[int]]:
    assert encoded.ids.dtype.name == "int32"
    assert encoded.offsets.dtype.name == "int64"
    assert encoded.offsets[0] == 0
    return [encoded.of(index).tolist() for index in range(len(encoded.offsets) - 1)]


@pytest.mark.parametrize("name", FOLDERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_text_gets_the_ids_of_the_reference(
    name: str, data: st.DataObject, encoders: dict[str, GigatokenEncoder]
) -> None:
    encoder = encoders[name]
    piece = st.sampled_from(_pieces(name, encoder))
    part = st.one_of(piece, piece, st.sampled_from(MARKS), st.text(st.characters(codec="utf-8"), max_size=4))
    text = st.lists(part, max_size=12).map("".join)
    texts = data.draw(st.lists(text, min_size=1, max_size=20))
    expected = parts(encoder.reference.encode(texts))
    assert parts(encoder.encode(texts)) == expected
    strings = pa.array(["not this", *texts], data.draw(st.sampled_from([pa.string(), pa.large_string()])))[1:]
    assert parts(encoder.encode_arrow(strings)) == expected == parts(encoder.reference.encode_arrow(strings))
    splits = [data.draw(st.integers(-1, len(text) + 1)) for text in texts]
    for found, right in zip(
        encoder.encode_with_seam(texts, splits)[1:], encoder.reference.encode_with_seam(texts, splits)[1:], strict=True
    ):
        assert found.tolist() == right.tolist()


@pytest.mark.parametrize("name", FOLDERS)
def test_every_piece_beside_every_kind_of_neighbour(name: str, encoders: dict[str, GigatokenEncoder]) -> None:
    encoder = encoders[name]
    frames = ("{}", " {} ", "a{}b", "中{}。", "{0}{0}", "\n{}\t", "9{}9", "{}😀{}", "{}<tool>{}")
    texts = [frame.format(piece, piece) for piece in _pieces(name, encoder) for frame in frames]
    assert len(texts) > 1000
    assert parts(encoder.encode(texts)) == parts(encoder.reference.encode(texts))


@pytest.mark.parametrize("name", ["llama", "byte_level"])
def test_threads_divide_large_texts_without_a_seam(name: str, encoders: dict[str, GigatokenEncoder]) -> None:
    alone = encoders[name]
    together = GigatokenEncoder(alone._model, alone.reference, 2, alone.proof or "")
    text = "the quick  fox 今天天气 x = 37\n" * 3
    texts = [text * 25_000, "", text, "a" * 50_000, text * 3000]
    assert len(texts[0].encode()) > 2 << 20
    assert parts(together.encode(texts)) == parts(alone.encode(texts)) == parts(alone.reference.encode(texts))


def test_nothing_in_nothing_out(encoders: dict[str, GigatokenEncoder]) -> None:
    for encoder in (*encoders.values(), encoders["llama"].reference):
        assert parts(encoder.encode([])) == parts(encoder.encode_arrow(pa.array([], pa.string()))) == []
        assert parts(encoder.encode(["", ""])) == [[], []]


def test_half_a_surrogate_pair_is_no_text(encoders: dict[str, GigatokenEncoder]) -> None:
    kinds = [encoders["llama"], encoders["byte_level"]]
    checked = [encoder for pair in kinds for encoder in (pair, pair.reference)]
    assert len({encoder.kind for encoder in checked}) == 3
    for encoder in checked:
        with pytest.raises(UnicodeEncodeError):
            encoder.encode(["fine", "\ud800"])


def test_arrow_strings_are_looked_at_before_gigatoken_reads_them(encoders: dict[str, GigatokenEncoder]) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(np.array([0, 1, 3], np.int32)), pa.py_buffer(b"a\xff\xfe")]
    )
    for encoder in (encoders["llama"], encoders["llama"].reference):
        with pytest.raises(ValueError, match="Invalid UTF8"):
            encoder.encode_arrow(broken)
        with pytest.raises(ValueError, match="1 of 2 texts are null"):
            encoder.encode_arrow(pa.array(["a", None]))
        with pytest.raises(ValueError, match="not of int64"):
            encoder.encode_arrow(pa.array([1]))


def test_words_are_forgotten_in_time(encoders: dict[str, GigatokenEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gigatoken_encoder, "_BYTES_REMEMBERED", 100)
    encoder = GigatokenEncoder(encoders["byte_level"]._model, encoders["byte_level"].reference, 1, "")
    seen = set()
    for number in range(12):
        texts = [f"the quick fox {number}", "今天"]
        assert parts(encoder.encode(texts)) == parts(encoder.reference.encode(texts))
        seen.add(id(encoder._tokenizer))
        assert encoder._bytes_met <= 100
    assert len(seen) > 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_encode_too(method: str, encoders: dict[str, GigatokenEncoder]) -> None:
    text = "the quick fox 今天 " * 150_000  # enough for the threads of this process to have worked
    encoder = load_encoder(_folder(encoders["llama"]), 2, "gigatoken")
    expected = encoder.encode([text, "a", text]).ids.tobytes()
    context: Any = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        found = pool.starmap_async(_encode, [(encoder, [text, "a", text])] * 2).get(timeout=120)
    assert found == [("gigatoken", expected)] * 2


def test_an_inherited_encoder_works_in_a_forked_process(encoders: dict[str, GigatokenEncoder]) -> None:
    text = "the quick fox 今天 " * 150_000
    encoder = GigatokenEncoder(encoders["llama"]._model, encoders["llama"].reference, 2, "")
    expected = len(encoder.encode([text, text]).ids)
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    child = context.Process(target=lambda: queue.put(len(encoder.encode([text, text]).ids)), daemon=True)
    child.start()
    assert queue.get(timeout=120) == expected
    child.join()


def test_pickles_carry_the_proof(encoders: dict[str, GigatokenEncoder]) -> None:
    again = pickle.loads(pickle.dumps(encoders["user_defined"]))
    assert (again.kind, again.proof) == ("gigatoken", encoders["user_defined"].proof)


_PIECES: dict[str, list[str]] = {}


def _pieces(name: str, encoder: GigatokenEncoder) -> list[str]:
    if name not in _PIECES:
        _PIECES[name] = pieces_and_merges(encoder._model)[0]
    return _PIECES[name]


def _folder(encoder: Encoder) -> Path:
    return Path(encoder.again[1][0])


def _encode(encoder: Encoder, texts: list[str]) -> tuple[str, bytes]:
    return encoder.kind, encoder.encode(texts).ids.tobytes()
