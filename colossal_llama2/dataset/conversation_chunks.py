"""Encoded chunks on disk, between the workers that encode and those that write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from colossal_llama2.dataset.conversation_encoding import ChunkEncoder, Draft, EncodingJob, Tally
from colossal_llama2.dataset.conversation_files import Chunk
from colossal_llama2.dataset.encoding import tokenizer_key
from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.loading import load_encoder

# Of each example: its key (see `Example`), how many sequences it is (the answers of a preference), their tokens and how
# many of those are learned, and its line.
EXAMPLE: Final = np.dtype(
    [("key", "<u8"), ("sequences", "<i8"), ("tokens", "<i8"), ("learned", "<i8"), ("line", "<i8")]
)
SEQUENCE: Final = np.dtype([("tokens", "<i8"), ("rank", "<i4")])
_made: list[tuple[EncodingJob, ChunkEncoder]] = []  # the last job of this process and its encoder


@dataclass(frozen=True)
class EncodedChunk:
    """A chunk's token ids on disk, and what became of its records.

    Attributes:
        source: number of the file it is of.
        folder: holds ``ids.npy`` (int32, flat), ``learned.npy`` (bool, flat), ``examples.npy`` (`EXAMPLE`) and
            ``sequences.npy`` (`SEQUENCE`); of prompts also ``texts.arrow``.
        tally: counts and lists.
    """

    source: int
    folder: Path
    tally: Tally

    def table(self, name: str) -> npt.NDArray[Any]:
        """Read ``examples`` or ``sequences``."""
        return np.load(self.folder / f"{name}.npy")

    def mapped(self, name: str, kind: str) -> npt.NDArray[Any]:
        """Map ``ids`` or ``learned``; `np.load` would keep a file open for each of many chunks."""
        path = self.folder / f"{name}.npy"
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            header = file.tell()
        with pa.memory_map(str(path)) as mapped:
            return np.frombuffer(mapped.read_buffer(), dtype=kind, offset=header)

    def texts(self) -> Any:
        """Map the table of prompts: ``text`` and ``record``."""
        with pa.memory_map(str(self.folder / "texts.arrow")) as mapped:
            return pa.ipc.open_file(mapped).read_all()


def encode_chunk(chunk: Chunk, job: EncodingJob) -> EncodedChunk:
    """Encode a chunk and keep its tokens in the scratch folder.

    Raises:
        InputError: a record is bad, and bad ones are not to be skipped.
    """
    drafts, tally = _chunk_encoder(job).encode(chunk)
    folder = job.scratch_dir / f"{chunk.source:06d}-{chunk.start:015d}"
    folder.mkdir()
    encoded = [one for draft in drafts for one in draft.encoded]
    examples = np.zeros(len(drafts), dtype=EXAMPLE)
    for number, draft in enumerate(drafts):
        examples[number] = (draft.key, len(draft.encoded), draft.num_tokens, draft.num_learned, draft.line)
    sequences = np.zeros(len(encoded), dtype=SEQUENCE)
    sequences["tokens"] = [len(one.ids) for one in encoded]
    sequences["rank"] = [rank for draft in drafts for rank in draft.ranks]
    np.save(folder / "ids.npy", _flat([one.ids for one in encoded], np.int32))
    np.save(folder / "learned.npy", _flat([one.learned for one in encoded], np.bool_))
    np.save(folder / "examples.npy", examples)
    np.save(folder / "sequences.npy", sequences)
    if job.type == "prompt":
        _write_texts(drafts, folder)
    return EncodedChunk(chunk.source, folder, tally)


def _chunk_encoder(job: EncodingJob) -> ChunkEncoder:
    """Make the encoder once a worker process.

    Raises:
        InputError: the tokenizer's folder has changed since the command began.
    """
    if _made and _made[0][0] == job:
        return _made[0][1]
    encoder = load_encoder(job.tokenizer_dir)
    if tokenizer_key(job.tokenizer_dir, encoder) != job.tokenizer_key:
        raise InputError("was changed while the set was being encoded", path=job.tokenizer_dir, remedy="start again")
    _made[:] = [(job, ChunkEncoder(job, encoder))]
    return _made[0][1]


def _write_texts(drafts: Sequence[Draft], folder: Path) -> None:
    columns = {
        "text": [draft.located[0].text for draft in drafts],
        "record": [draft.raw.decode("utf-8") for draft in drafts],
    }
    table = pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})
    with pa.ipc.new_file(str(folder / "texts.arrow"), table.schema) as writer:
        writer.write_table(table)


def _flat(parts: Sequence[npt.NDArray[Any]], kind: Any) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=kind), *parts]).astype(kind, copy=False)
