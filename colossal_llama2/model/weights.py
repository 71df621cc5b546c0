"""The weight files of a model folder, whatever their number and format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from colossal_llama2.errors import InputError
from colossal_llama2.model.safetensors_stream import (
    DTYPE_NAMES,
    OutgoingTensor,
    copied,
    from_torch,
    map_tensor,
    read_header,
)

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_BIN_SINGLE: Final = "pytorch_model.bin"
_BIN_INDEX: Final = "pytorch_model.bin.index.json"
WEIGHT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")


@dataclass(frozen=True)
class WeightFiles:
    """The weight files of a model folder.

    Attributes:
        paths: the files, by name.
        index: the index that lists them, where there are several.
        is_safetensors: whether they are safetensors; otherwise they are PyTorch's own.
    """

    paths: tuple[Path, ...]
    index: Path | None
    is_safetensors: bool

    def locations(self) -> dict[str, tuple[Path, tuple[int, ...], str]]:
        """Map every tensor's name to its file, shape and dtype (as safetensors writes it)."""
        found: dict[str, tuple[Path, tuple[int, ...], str]] = {}
        for path in self.paths:
            if self.is_safetensors:
                found.update({t.name: (path, t.shape, t.dtype) for t in read_header(path)[0]})
            else:
                found.update(
                    {
                        name: (path, tuple(tensor.shape), DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)))
                        for name, tensor in _load_bin(path).items()
                    }
                )
        return found

    def map(self, path: Path, name: str) -> torch.Tensor:
        """Map one tensor of one file into memory; its pages are read when they are used."""
        if self.is_safetensors:
            return map_tensor(next(tensor for tensor in read_header(path)[0] if tensor.name == name))
        return _load_bin(path)[name]

    def mapped(self, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the name of every tensor of one file and the tensor, mapped into memory."""
        if self.is_safetensors:
            yield from ((tensor.name, map_tensor(tensor)) for tensor in read_header(path)[0])
        else:
            yield from _load_bin(path).items()

    def outgoing(self, path: Path) -> tuple[list[OutgoingTensor], dict[str, str]]:
        """Return the tensors of one file, ready to be streamed into a safetensors file, and its metadata."""
        if self.is_safetensors:
            stored, metadata = read_header(path)
            return [copied(tensor) for tensor in stored], metadata
        tensors = [from_torch(name, tensor) for name, tensor in _load_bin(path).items()]
        # widest numbers first, as safetensors itself orders them: every tensor then begins where its dtype may
        widths = {name: tensor.element_size() for name, tensor in _load_bin(path).items()}
        return sorted(tensors, key=lambda tensor: (-widths[tensor.name], tensor.name)), {"format": "pt"}

    def target_name(self, path: Path) -> str:
        """Name the safetensors file that takes the place of one of these files."""
        if self.is_safetensors:
            return path.name
        if self.index is None:
            return SINGLE
        return path.name.replace("pytorch_model", "model").removesuffix(".bin") + ".safetensors"


def find_weights(model_dir: Path) -> WeightFiles:
    """Find the weight files of a model folder; safetensors are preferred, as transformers prefers them.

    Raises:
        InputError: there are none, or an index names a file that is missing.
    """
    for single, index, is_safetensors in ((SINGLE, INDEX, True), (_BIN_SINGLE, _BIN_INDEX, False)):
        if (model_dir / single).is_file():
            return WeightFiles((model_dir / single,), None, is_safetensors)
        if (model_dir / index).is_file():
            names = sorted(set(read_json(model_dir / index).get("weight_map", {}).values()))
            paths = tuple(model_dir / str(name) for name in names)
            for path in paths:
                if not path.is_file() or path.parent != model_dir:
                    raise InputError(
                        "a weight file that the index names is missing", path=path, remedy="fetch the model again"
                    )
            if paths:
                return WeightFiles(paths, model_dir / index, is_safetensors)
    raise InputError("holds no weights", path=model_dir, remedy=f"give a folder with {SINGLE} or {INDEX}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: the file cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path=path) from None
    except ValueError as error:
        raise InputError(f"not JSON ({error})", path=path) from None
    if not isinstance(value, dict):
        raise InputError("not a JSON object", path=path)
    return value


def _load_bin(path: Path) -> dict[str, torch.Tensor]:
    """Open a PyTorch file, tensors only, mapped rather than read."""
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"not a PyTorch weight file ({first_line})", path=path, remedy="fetch it again") from None
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError("holds more than a model's tensors", path=path, remedy="save the state_dict alone")
    return content
