"""Many small files: their documents are encoded together, and each file keeps its own account."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from colossal_llama2.dataset import encoding
from colossal_llama2.dataset.encoding import EncodingJob, encode_shard, tokenizer_key
from colossal_llama2.dataset.inputs import find_inputs, split_into_shards
from colossal_llama2.dataset.reading import Reading
from colossal_llama2.tokenizer.loading import load_encoder


def test_documents_of_small_files_are_encoded_together_and_counted_apart(
    tmp_path: Path, llama_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [0, 1, 3, 0, 2, 5, 1]
    folder = tmp_path / "in"
    folder.mkdir()
    for number, count in enumerate(sizes):
        lines = [json.dumps({"text": f"file {number} record {record}"}) + "\n" for record in range(count)]
        (folder / f"{number}.jsonl").write_text("".join(lines) or "\n")  # an empty file is no segment
    calls: list[int] = []
    plain: Callable[..., None] = encoding._add_batch

    def counted(writer: object, batch: object, *rest: object) -> None:
        calls.append(len(batch.texts))  # type: ignore[attr-defined]
        plain(writer, batch, *rest)

    monkeypatch.setattr(encoding, "_add_batch", counted)
    [shard] = split_into_shards(find_inputs([str(folder)])[0])
    key = tokenizer_key(llama_tokenizer_dir, load_encoder(llama_tokenizer_dir))
    encoded = encode_shard(shard, EncodingJob(llama_tokenizer_dir, key, tmp_path / "cache", Reading()))
    assert calls == [sum(sizes)]
    segments, documents = encoded.segments(), encoded.documents()
    assert segments["documents"].tolist() == sizes
    assert segments["tokens"].sum() == documents["tokens"].sum() == encoded.num_tokens
    firsts = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
    for name in ("tokens", "characters", "bytes"):
        per_file = [documents[name][begin:end].sum() for begin, end in itertools.pairwise(firsts)]
        assert segments[name].tolist() == per_file
