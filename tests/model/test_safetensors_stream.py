"""Files written as streams are what the safetensors library reads, and broken ones are named."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from colossal_llama2.errors import InputError
from colossal_llama2.model import safetensors_stream
from colossal_llama2.model.safetensors_stream import copied, from_torch, map_tensor, read_header, write_tensors

TENSORS = {
    "a.weight": torch.randn(5, 3).to(torch.bfloat16),
    "b.weight": torch.randn(2, 2, 2),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "mask": torch.tensor([True, False, True]),
    "ids": torch.arange(7),
}


@pytest.mark.parametrize("block", [1, 7, 1 << 24])
def test_copies_are_byte_for_byte(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_stream, "_BLOCK", block)
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(TENSORS, source, {"format": "pt"})
    stored, metadata = read_header(source)
    write_tensors(target, [copied(tensor) for tensor in stored], metadata)
    assert target.read_bytes() == source.read_bytes()
    for tensor in stored:
        assert torch.equal(map_tensor(tensor), TENSORS[tensor.name])


def test_torch_tensors_are_written_as_the_library_reads_them(tmp_path: Path) -> None:
    target = tmp_path / "a.safetensors"
    tensors = {**TENSORS, "transposed": torch.arange(6.0).reshape(2, 3).T}
    write_tensors(target, [from_torch(name, tensor) for name, tensor in tensors.items()], {})
    loaded = load_file(target)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(InputError, match="complex64"):
        from_torch("c", torch.zeros(1, dtype=torch.complex64))


def test_dtypes_unknown_here_are_copied_all_the_same(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"w": torch.randn(4, 4).to(torch.float8_e4m3fn)}, source)
    stored, metadata = read_header(source)
    write_tensors(target, [copied(tensor) for tensor in stored], metadata)
    assert torch.equal(load_file(target)["w"].float(), load_file(source)["w"].float())


@pytest.mark.parametrize("damage", ["cut", "header", "json", "short", "offsets"])
def test_broken_files_are_a_users_mistake(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path)
    raw = path.read_bytes()
    path.write_bytes(
        {
            "cut": raw[:-1],
            "header": struct.pack("<Q", 1 << 60) + raw[8:],
            "json": struct.pack("<Q", 4) + b"{bad" + raw[12:],
            "short": b"abc",
            "offsets": raw.replace(b'"data_offsets"', b'"dota_offsets"'),
        }[damage]
    )
    with pytest.raises(InputError, match=r"a\.safetensors: not a whole safetensors file"):
        read_header(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_header(tmp_path / "absent.safetensors")


def test_systems_without_kernel_copies_copy_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def refuse(*arguments: int) -> int:
        calls.append(arguments)
        raise OSError("not between files")

    monkeypatch.setattr(safetensors_stream.os, "sendfile", refuse)
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(TENSORS, source)
    stored, metadata = read_header(source)
    write_tensors(target, [copied(tensor) for tensor in stored], metadata)
    assert calls
    assert target.read_bytes() == source.read_bytes()
