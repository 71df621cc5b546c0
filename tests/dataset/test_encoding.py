"""Encoding: SentencePiece's ids, source and target as one text, and a cache that is never wrong."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from colossal_llama2.dataset import batching, encoding
from colossal_llama2.dataset.encoded import TOKENS_FILE, EncodedShard
from colossal_llama2.dataset.encoding import EncodingJob, encode_shard, tokenizer_key
from colossal_llama2.dataset.inputs import InputFile, Shard, first_line_number, split_into_shards
from colossal_llama2.dataset.records import Reading
from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.loading import load_encoder

WORDS = [*"abeht  .\n0今天龘😀", "the", " fox", "</s>", "<s>", "<unk>"]
TEXT = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)


def job_for(tokenizer_dir: Path, cache_dir: Path, skip: bool = False) -> EncodingJob:
    return EncodingJob(
        tokenizer_dir, tokenizer_key(tokenizer_dir, load_encoder(tokenizer_dir)), cache_dir, Reading(skip)
    )


def shards_of(folder: Path, content: bytes, shard_bytes: int = 1 << 20) -> list[Shard]:
    path = folder / "data.jsonl"
    path.write_bytes(content)
    return split_into_shards([InputFile(str(folder), "in/data.jsonl", len(content), "jsonl")], shard_bytes)


def jsonl(records: Sequence[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def tokens_of(shard: EncodedShard) -> npt.NDArray[np.int32]:
    return np.fromfile(shard.folder / TOKENS_FILE, dtype="<i4")


def refused_lines(shard: Shard, encoded: EncodedShard) -> list[tuple[int, str]]:
    """Line of the file, and reason, of every line that was refused."""
    return [
        (first_line_number(shard.segments[line.segment]) + line.lines_before, line.reason) for line in encoded.refused
    ]


def documents_of(shards: Sequence[EncodedShard]) -> list[tuple[list[int], int, str]]:
    """Ids, unlearned tokens and category of every document."""
    found = []
    for shard in shards:
        begin, tokens = 0, tokens_of(shard)
        for entry in shard.documents():
            end = begin + int(entry["tokens"])
            found.append((tokens[begin:end].tolist(), int(entry["unlearned"]), shard.categories[entry["category"]]))
            begin = end
        assert begin == len(tokens)
    return found


@settings(deadline=None, max_examples=40)
@given(texts=st.lists(st.tuples(TEXT, TEXT.filter(bool), st.sampled_from("ab")), min_size=1, max_size=6))
def test_documents_are_what_sentencepiece_gives(texts: list[tuple[str, str, str]], llama_tokenizer_dir: Path) -> None:
    processor = SentencePieceProcessor(model_file=str(llama_tokenizer_dir / "tokenizer.model"))
    records = [{"source": source, "target": target, "category": category} for source, target, category in texts]
    with tempfile.TemporaryDirectory() as work:
        [shard] = shards_of(Path(work), jsonl(records))
        encoded = encode_shard(shard, job_for(llama_tokenizer_dir, Path(work, "cache")))
        documents, table = documents_of([encoded]), encoded.documents()
        assert encoded.num_tokens == sum(len(ids) for ids, _, _ in documents)
    for (ids, unlearned, category), (source, target, wanted), entry in zip(documents, texts, table, strict=True):
        assert ids == [1, *processor.encode(source + target), 2]
        assert category == wanted
        assert entry["characters"] == len(source + target)
        assert entry["bytes"] == len((source + target).encode())
        # The text of the unlearned tokens is a beginning of the source, and the next whole token would reach beyond.
        seen = processor.decode(ids[1:unlearned]).rstrip("\ufffd") if unlearned > 1 else ""
        assert (source == "" and unlearned == 1) or (" " + source).startswith(seen) or source.startswith(seen)


@pytest.mark.parametrize(
    ("source", "target", "apart"),
    [("the qui", "ck brown", False), ("the", " fox", True), ("the fox.", "\nthe", True), ("", "the fox", True)],
)
def test_a_token_across_the_seam_is_learned(source: str, target: str, apart: bool, llama_tokenizer_dir: Path) -> None:
    processor = SentencePieceProcessor(model_file=str(llama_tokenizer_dir / "tokenizer.model"))
    pieces = processor.encode(source + target, out_type=str)
    inside, seen = 0, 0
    for piece in pieces:
        seen += len(piece) - (1 if inside == 0 else 0)  # the first piece begins with the dummy prefix
        if seen > len(source) or not source:
            break
        inside += 1
    assert (len("".join(pieces[:inside]).removeprefix("▁")) == len(source)) == apart
    with tempfile.TemporaryDirectory() as work:
        [shard] = shards_of(Path(work), jsonl([{"source": source, "target": target}]))
        [(_, unlearned, _)] = documents_of([encode_shard(shard, job_for(llama_tokenizer_dir, Path(work, "cache")))])
    assert unlearned == 1 + inside


def test_text_that_looks_like_a_special_token_stays_text(tmp_path: Path, llama_tokenizer_dir: Path) -> None:
    [shard] = shards_of(tmp_path, jsonl([{"target": "a</s><s>b<unk>"}]))
    [(ids, _, _)] = documents_of([encode_shard(shard, job_for(llama_tokenizer_dir, tmp_path / "cache"))])
    assert [ids[0], ids[-1]] == [1, 2]
    assert not {0, 1, 2} & set(ids[1:-1])


def test_a_byte_level_tokenizer_works_the_same(tmp_path: Path, byte_level_tokenizer_dir: Path) -> None:
    encoder = load_encoder(byte_level_tokenizer_dir)
    [shard] = shards_of(tmp_path, jsonl([{"target": "the fox <|end|>"}]))
    [(ids, unlearned, _)] = documents_of([encode_shard(shard, job_for(byte_level_tokenizer_dir, tmp_path / "cache"))])
    assert (ids[0], ids[-1], unlearned) == (encoder.bos_token_id, encoder.eos_token_id, 1)
    assert encoder.eos_token_id not in ids[1:-1]


LINES = st.lists(
    st.sampled_from([b'{"target": "the"}', b'{"target": "fox", "category": "b"}', b"", b"bad", b'{"source": "x"}']),
    min_size=1,
    max_size=9,
)


@settings(deadline=None, max_examples=40)
@given(
    lines=LINES,
    ending=st.sampled_from([b"\n", b"\r\n"]),
    bom=st.booleans(),
    final=st.booleans(),
    shard_bytes=st.integers(1, 70),
)
def test_shards_change_neither_documents_nor_line_numbers(
    lines: list[bytes], ending: bytes, bom: bool, final: bool, shard_bytes: int, llama_tokenizer_dir: Path
) -> None:
    content = b"\xef\xbb\xbf" * bom + ending.join(lines) + ending * final
    bad = [number for number, line in enumerate(lines, 1) if line in (b"bad", b'{"source": "x"}')]
    targets = [json.loads(line)["target"] for line in lines if b"target" in line]
    processor = SentencePieceProcessor(model_file=str(llama_tokenizer_dir / "tokenizer.model"))
    with tempfile.TemporaryDirectory() as work:
        shards = shards_of(Path(work), content, shard_bytes)
        skipping = job_for(llama_tokenizer_dir, Path(work, "cache"), skip=True)
        for _ in range(2):  # encoded, then found in the cache
            encoded = [encode_shard(shard, skipping) for shard in shards]
            assert [ids for ids, _, _ in documents_of(encoded)] == [[1, *processor.encode(t), 2] for t in targets]
            refused = [refused_lines(shard, result) for shard, result in zip(shards, encoded, strict=True)]
            assert [line for of_shard in refused for line, _ in of_shard] == bad
        if bad:
            with pytest.raises(InputError, match=rf"data\.jsonl:{bad[0]}: .*--bad_records skip"):
                for shard in shards:
                    encode_shard(shard, job_for(llama_tokenizer_dir, Path(work, "cache")))


def test_the_cache_is_used_for_the_same_bytes(
    tmp_path: Path, llama_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_for(llama_tokenizer_dir, tmp_path / "cache")
    [shard] = shards_of(tmp_path, jsonl([{"target": "the fox"}]))
    first = encode_shard(shard, job)
    monkeypatch.setattr(encoding, "_encoder", lambda *_: pytest.fail("encoded again"))
    assert encode_shard(shard, job) == first


def test_refused_lines_found_in_the_cache_are_numbered_anew(tmp_path: Path, llama_tokenizer_dir: Path) -> None:
    job = job_for(llama_tokenizer_dir, tmp_path / "cache", skip=True)
    first = shards_of(tmp_path, b"      {}\nbad\n", shard_bytes=9)[1]
    assert refused_lines(first, encode_shard(first, job)) == [(2, "not JSON (Expecting value at column 1)")]
    second = shards_of(tmp_path, b"\n\n    {}\nbad\n", shard_bytes=9)[1]
    assert [line for line, _ in refused_lines(second, encode_shard(second, job))] == [4]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_byte_order_mark_counts_at_the_beginning_of_a_file_alone(tmp_path: Path, llama_tokenizer_dir: Path) -> None:
    line = b'\xef\xbb\xbf{"target": "the"}\n'
    first, second = shards_of(tmp_path, line * 2, shard_bytes=len(line))
    job = job_for(llama_tokenizer_dir, tmp_path / "cache")
    assert len(documents_of([encode_shard(first, job)])) == 1
    with pytest.raises(InputError, match=r"data\.jsonl:2: "):
        encode_shard(second, job)


@pytest.mark.parametrize("name", ["tokens.bin", "documents.npy", "segments.npy", "shard.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "removed", "emptied"])
def test_a_damaged_cache_entry_is_encoded_again(
    name: str, damage: str, tmp_path: Path, llama_tokenizer_dir: Path
) -> None:
    job = job_for(llama_tokenizer_dir, tmp_path / "cache")
    [shard] = shards_of(tmp_path, jsonl([{"target": "the fox", "category": "animals"}]))
    encoded = encode_shard(shard, job)
    path = encoded.folder / name
    whole = path.read_bytes()
    place = whole.index(b"animals") if name == "shard.json" else len(whole) - 2
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    path.unlink()
    if damage != "removed":
        path.write_bytes({"cut": whole[:-3], "flipped": flipped, "emptied": b""}[damage])
    assert documents_of([encode_shard(shard, job)])[0][2] == "animals"
    assert path.read_bytes() == whole


def test_other_special_tokens_are_another_entry(tmp_path: Path, llama_tokenizer_dir: Path) -> None:
    folder = Path(shutil.copytree(llama_tokenizer_dir, tmp_path / "tokenizer"))
    [shard] = shards_of(tmp_path, jsonl([{"target": "the fox"}]))
    [(ids, _, _)] = documents_of([encode_shard(shard, job_for(folder, tmp_path / "cache"))])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": "<unk>"}))
    [(others, _, _)] = documents_of([encode_shard(shard, job_for(folder, tmp_path / "cache"))])
    assert (ids[:-1], ids[-1], others[-1]) == (others[:-1], 2, 0)


def test_a_tokenizer_changed_under_way_is_refused(tmp_path: Path, llama_tokenizer_dir: Path) -> None:
    [shard] = shards_of(tmp_path, jsonl([{"target": "the fox"}]))
    with pytest.raises(InputError, match="was changed while"):
        encode_shard(shard, EncodingJob(llama_tokenizer_dir, "another", tmp_path / "cache", Reading()))


def test_a_shard_without_records_is_empty(tmp_path: Path, llama_tokenizer_dir: Path) -> None:
    [shard] = shards_of(tmp_path, b"\xef\xbb\xbf\r\n\n  \n")
    for _ in range(2):
        encoded = encode_shard(shard, job_for(llama_tokenizer_dir, tmp_path / "cache"))
        assert (encoded.num_tokens, len(encoded.documents()), encoded.categories) == (0, 0, ())


def test_texts_beyond_one_batch_are_joined_in_order(
    tmp_path: Path, llama_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"source": "q" * (number % 3), "target": "the fox " * number} for number in range(1, 9)]
    [shard] = shards_of(tmp_path, jsonl(records))
    whole = documents_of([encode_shard(shard, job_for(llama_tokenizer_dir, tmp_path / "one"))])
    monkeypatch.setattr(batching, "BATCH_CHARACTERS", 20)
    assert documents_of([encode_shard(shard, job_for(llama_tokenizer_dir, tmp_path / "two"))]) == whole
