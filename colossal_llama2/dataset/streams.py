"""Files as streams of bytes, whatever they are compressed with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from colossal_llama2.errors import InputError

_CODECS = {"jsonl.gz": "gzip", "jsonl.zst": "zstd"}
_SKIP_BYTES = 4 << 20


@contextmanager
def open_stream(path: Path, kind: str, start: int = 0) -> Iterator[BinaryIO]:
    """Open a jsonl file, decompressed on the way, at a place of what comes out of it.

    Compressed files may consist of several members or frames; to begin in their middle, all before it is decompressed.

    Raises:
        InputError: the file cannot be read, or is damaged or cut off.
    """
    with reading_of(path):
        if kind == "jsonl":
            with path.open("rb", buffering=0) as file:
                file.seek(start)
                yield file
            return
        with pa.OSFile(str(path)) as packed, pa.CompressedInputStream(packed, _CODECS[kind]) as stream:
            while start > 0 and (block := stream.read(min(_SKIP_BYTES, start))):
                start -= len(block)
            yield cast(BinaryIO, stream)


@contextmanager
def reading_of(path: Path) -> Iterator[None]:
    """Turn the system's and the decoders' refusal to read a file into the user's mistake."""
    try:
        yield
    except pa.ArrowMemoryError as error:
        what = f"asks for more memory than there is, or is damaged ({error})"
        raise InputError(what, path=path, remedy="write it again, in smaller row groups or record batches") from None
    except pa.ArrowException as error:
        raise InputError(f"is damaged or cut off ({error})", path=path, remedy="fetch or write it again") from None
    except OSError as error:
        if error.errno is not None:  # pyarrow's own wording repeats the path
            raise InputError(f"cannot be read ({os.strerror(error.errno)})", path=path) from None
        raise InputError(f"is damaged or cut off ({error})", path=path, remedy="fetch or write it again") from None


@contextmanager
def reading_table(path: Path) -> Iterator[None]:
    """Do the same for a file with a schema, whose names are decoded as they are asked for."""
    with reading_of(path):
        try:
            yield
        except UnicodeDecodeError as error:
            raise InputError(f"is damaged ({error})", path=path, remedy="fetch or write it again") from None
