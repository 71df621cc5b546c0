"""Keys and values of all running texts, one row each, their newest tokens side by side at the right end."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from colossal_llama2.errors import InputError

_SPARE_TOKENS = 128


class RowsLayer(DynamicLayer):
    """One layer's part, in buffers with spare room: a step writes one column and copies nothing.

    Attributes:
        keys: [rows, heads, length, head_dim], a view of what is in use; `values` likewise.
    """

    def __init__(self) -> None:
        super().__init__()
        self._key_buffer = self._value_buffer = torch.empty(0)
        self._rows, self._length, self._end = 0, 0, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the newest tokens of all rows, [rows, heads, tokens, head_dim], and return everything in use."""
        added = key_states.shape[-2]
        if self._end + added > self._key_buffer.shape[-2]:
            self._make_room(self._rows, self._length, key_states, value_states)
        self._key_buffer[: self._rows, :, self._end : self._end + added] = key_states
        self._value_buffer[: self._rows, :, self._end : self._end + added] = value_states
        self._end += added
        self._show(self._rows, self._length + added)
        return self.keys, self.values  # type: ignore[return-value]

    def join(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add rows, [new, heads, tokens, head_dim]; what is shorter is filled up with zeros at its left."""
        rows, tokens = self._rows + keys.shape[0], keys.shape[-2]
        if rows > self._key_buffer.shape[0] or tokens > self._end:
            self._make_room(rows, max(self._length, tokens), keys, values)
        length, new = max(self._length, tokens), slice(self._rows, rows)
        for buffer, states in ((self._key_buffer, keys), (self._value_buffer, values)):
            # Masked places count nothing, unless they hold what an attention weight of 0 cannot undo: no number.
            buffer[: self._rows, :, self._end - length : self._end - self._length] = 0
            buffer[new, :, self._end - length : self._end - tokens] = 0
            buffer[new, :, self._end - tokens : self._end] = states
        self._show(rows, length)

    def leave(self, row: int, length: int) -> None:
        """Put the last row in a row's place, and keep `length` tokens, as many as the longest row left has."""
        last, used = self._rows - 1, slice(self._end - self._length, self._end)
        if row != last:
            self._key_buffer[row, :, used] = self._key_buffer[last, :, used]
            self._value_buffer[row, :, used] = self._value_buffer[last, :, used]
        self._show(last, length)

    def _show(self, rows: int, length: int) -> None:
        self._rows, self._length = rows, length
        used = slice(self._end - length, self._end)
        self.keys, self.values = self._key_buffer[:rows, :, used], self._value_buffer[:rows, :, used]
        self.dtype, self.device, self.is_initialized = self._key_buffer.dtype, self._key_buffer.device, True

    def _make_room(self, rows: int, end: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Move what is in use to larger buffers, where it ends at `end` and more fits behind it."""
        shape = (max(rows, self._key_buffer.shape[0]), keys.shape[1], end + max(_SPARE_TOKENS, end // 2))
        used = slice(self._end - self._length, self._end)
        moved = []
        for buffer, states in ((self._key_buffer, keys), (self._value_buffer, values)):
            larger = states.new_zeros(*shape, states.shape[3])
            if self._rows:
                larger[: self._rows, :, end - self._length : end] = buffer[: self._rows, :, used]
            moved.append(larger)
        self._key_buffer, self._value_buffer = moved
        self._end = end


class RowsCache(Cache):
    """What a model's forward takes as `past_key_values` for all running texts together.

    Attributes:
        lengths: tokens of each row.
    """

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=RowsLayer)
        self.layers: list[RowsLayer] = []
        self.lengths: list[int] = []

    def join(self, read: DynamicCache, copies: int = 1) -> None:
        """Add what a prompt read alone has left, as so many new rows."""
        while len(self.layers) < len(read.layers):
            self.layers.append(RowsLayer())
        for own, layer in zip(self.layers, read.layers, strict=True):
            if layer.keys is not None:  # a layer that uses another's keys and values has none
                own.join(layer.keys.expand(copies, -1, -1, -1), layer.values.expand(copies, -1, -1, -1))
        self.lengths += [read.get_seq_length()] * copies

    def leave(self, row: int) -> None:
        """Take a row out; the last one takes its place."""
        self.lengths[row] = self.lengths[-1]
        self.lengths.pop()
        if not self.lengths:
            self.layers = []  # long texts have gone: their room is given back
            return
        for layer in self.layers:
            if layer.is_initialized:
                layer.leave(row, max(self.lengths))

    def grow(self) -> None:
        """Count the token that a step has added to every row."""
        self.lengths = [length + 1 for length in self.lengths]

    def inputs(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return the mask [B, length + 1] and positions [B, 1] of a step that adds one token to every row."""
        lengths = torch.tensor(self.lengths, device=device)
        longest = max(self.lengths)
        inputs = {"position_ids": lengths.unsqueeze(-1)}
        if min(self.lengths) < longest:
            inputs["attention_mask"] = torch.arange(longest + 1, device=device) >= (longest - lengths).unsqueeze(-1)
        return inputs


def check_cache(model: Any, name: object) -> None:
    """Refuse a model whose memory is something else than keys and values of every token.

    Raises:
        InputError: it is.
    """
    layers = DynamicCache(config=model.config).layers
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        raise InputError(
            "keeps more than keys and values of past tokens, which cannot be batched here",
            path=str(name),
            remedy="continue texts one by one with tools/generate.py",
        )
