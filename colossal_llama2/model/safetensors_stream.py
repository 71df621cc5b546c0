"""safetensors files read and written as streams: no tensor is held in memory on its way from one file to another.

Format: an 8-byte little-endian length, a JSON header (name to dtype, shape and byte range), then the tensors' bytes
without holes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch

from colossal_llama2.errors import InputError

TORCH_DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES: Final = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_BLOCK: Final = 1 << 24
_LARGEST_HEADER: Final = 100_000_000

Buffer = Any
"""What a file's ``write`` takes (bytes, memoryview, a contiguous array), or a `FileRange`."""


@dataclass(frozen=True)
class FileRange:
    """Bytes of another file, which the kernel copies without showing them to this process."""

    path: Path
    begin: int
    end: int

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self.end - self.begin


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file: ``begin`` and ``end`` are bytes from the start of the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class OutgoingTensor:
    """A tensor to be written: its size in bytes, and `blocks`, which yields them in order, a bit at a time."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    blocks: Callable[[], Iterable[Buffer]]


def read_header(path: Path) -> tuple[list[StoredTensor], dict[str, str]]:
    """Read the header of a safetensors file.

    Returns:
        The tensors in the order in which their bytes lie, and the file's metadata.

    Raises:
        InputError: the file cannot be read, is cut short, or is not safetensors.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > min(size, _LARGEST_HEADER):
                raise ValueError("header longer than the file")
            header = json.loads(file.read(length))
        metadata = {str(name): str(value) for name, value in header.pop("__metadata__", {}).items()}
        tensors = [
            StoredTensor(
                path,
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                8 + length + entry["data_offsets"][0],
                8 + length + entry["data_offsets"][1],
            )
            for name, entry in header.items()
        ]
        if any(not 8 + length <= tensor.begin <= tensor.end <= size for tensor in tensors):
            raise ValueError("cut short")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"not a whole safetensors file ({error})", path=path, remedy="fetch the file again") from None
    return sorted(tensors, key=lambda tensor: tensor.begin), metadata


def map_tensor(stored: StoredTensor) -> torch.Tensor:
    """Map a stored tensor into memory; its pages are read when they are used and can be given back at any time.

    Raises:
        InputError: a dtype that is not read here.
    """
    if stored.dtype not in TORCH_DTYPES:
        raise InputError(f"tensor {stored.name} is stored as {stored.dtype}, which is not supported", path=stored.path)
    if stored.begin == stored.end:
        return torch.empty(stored.shape, dtype=TORCH_DTYPES[stored.dtype])
    # copy-on-write, because torch has no read-only tensors; nothing here writes to it
    raw = np.memmap(stored.path, np.uint8, "c", offset=stored.begin, shape=(stored.end - stored.begin,))
    return torch.from_numpy(raw).view(TORCH_DTYPES[stored.dtype]).reshape(stored.shape)


def copied(stored: StoredTensor) -> OutgoingTensor:
    """Pass a stored tensor on, byte for byte."""
    size = stored.end - stored.begin
    return OutgoingTensor(stored.name, stored.dtype, stored.shape, size, lambda: _file_blocks(stored))


def from_torch(name: str, tensor: torch.Tensor) -> OutgoingTensor:
    """Pass a torch tensor on; one that is not contiguous is copied while it is written.

    Raises:
        InputError: a dtype that is not written here.
    """
    if tensor.dtype not in DTYPE_NAMES:
        raise InputError(f"tensor {name} has dtype {tensor.dtype}, which is not supported")
    return OutgoingTensor(
        name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), tensor.nbytes, lambda: [as_bytes(tensor)]
    )


def as_bytes(tensor: torch.Tensor) -> Buffer:
    """View a tensor's values, in order, as bytes."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def write_tensors(path: Path, tensors: Sequence[OutgoingTensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, each tensor's bytes as they come."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.num_bytes],
        }
        offset += tensor.num_bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that the tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        begin = file.tell()
        for tensor in tensors:
            for block in tensor.blocks():
                if isinstance(block, FileRange):
                    _copy_range(block, file)
                else:
                    file.write(block)
        assert file.tell() - begin == offset, "every tensor wrote the bytes its shape promises"


def _file_blocks(stored: StoredTensor) -> Iterator[FileRange]:
    for begin in range(stored.begin, stored.end, _BLOCK):
        yield FileRange(stored.path, begin, min(begin + _BLOCK, stored.end))


def _copy_range(block: FileRange, target: BinaryIO) -> None:
    """Append a range to a file; inside the kernel this takes a third of the time of reading and writing."""
    target.flush()
    with block.path.open("rb", buffering=0) as source:
        begin = block.begin
        try:
            while begin < block.end:
                count = os.sendfile(target.fileno(), source.fileno(), begin, block.end - begin)
                if not count:
                    raise InputError("became shorter while it was copied", path=block.path)
                begin += count
        except OSError:  # no such call between files on this system, or on this file system
            source.seek(begin)
            rest = source.read(block.end - begin)
            if len(rest) < block.end - begin:
                raise
            target.write(rest)
    target.seek(0, os.SEEK_END)
