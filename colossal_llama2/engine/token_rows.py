"""Rows of embedding and head where they lie: numbers of a row are added up over the ranks, and no matrix is gathered.

Plugins cut a matrix anywhere: by rows (tensor parallelism), or as a flat run of numbers that begins and ends inside a
row (ZeRO, Gemini). Every rank is given one such run, the runs together are the matrix, and no two overlap. So a sum
over a row is the sum of what the ranks find in their runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from colossal_llama2.engine import ranks
from colossal_llama2.engine.gathering import is_gemini
from colossal_llama2.engine.master_weights import boosted_module
from colossal_llama2.engine.session import Session

INPUT, HEAD = "input", "head"
_ELEMENTS_AT_ONCE = 1 << 22  # 16 MiB in fp32


@dataclass(frozen=True)
class Run:
    """A run of a flattened matrix: `values`, one-dimensional, begin `offset` numbers into it; its rows are `width`."""

    offset: int
    values: torch.Tensor
    width: int

    def of_rows(self, rows: range) -> Run:
        """Return what lies in some rows; it may be empty."""
        begin = max(rows.start * self.width, self.offset)
        end = max(min(rows.stop * self.width, self.offset + len(self.values)), begin)
        return Run(begin, self.values[begin - self.offset : end - self.offset], self.width)

    def blocks(self, rows: range, device: torch.device | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (number of the first row, [n, width] in fp32) of some rows, zeros where a row goes on elsewhere.

        Args:
            rows: which.
            device: where the blocks are to be, if not where the run is.
        """
        part = self.of_rows(rows)
        end, at_once = part.offset + len(part.values), max(_ELEMENTS_AT_ONCE // self.width, 1)
        if part.offset == end:
            return
        for row in range(part.offset // self.width, -(-end // self.width), at_once):
            some = part.of_rows(range(row, min(row + at_once, -(-end // self.width))))
            before = some.offset - row * self.width
            after = -(before + len(some.values)) % self.width
            values = some.values.to(device or some.values.device).float()  # in this order: half as much to move
            if before or after:
                values = functional.pad(values, (before, after))
            yield row, values.view(-1, self.width)


@dataclass(frozen=True)
class TokenMatrix:
    """An embedding or head with a row a token.

    Attributes:
        name: ``input`` or ``head``; a tied model has the first alone.
        find: returns this rank's run of it, fp32 where it is trained, or None where it has none. What a plugin moves
            is found where it lies at the moment; offset and length stay the same.
    """

    name: str
    find: Callable[[], tuple[int, torch.Tensor] | None]

    def run(self, width: int) -> Run:
        """Return this rank's run, empty where it has none."""
        found = self.find()
        return Run(0, torch.zeros(0), width) if found is None else Run(*found, width)


def token_matrices(session: Session) -> list[TokenMatrix]:
    """List a boosted model's matrices with a row a token, alike on every rank; to be read between steps."""
    model: Any = boosted_module(session.model)
    stages, stage = session.mesh.sizes[1], session.mesh.place[1]
    matrices = [TokenMatrix(INPUT, partial(_find, session, model.get_input_embeddings(), here=stage == 0))]
    head = model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    if head is not None and f"{names[id(head)]}.weight" in session.parameter_names:  # a tied weight has one name
        matrices.append(TokenMatrix(HEAD, partial(_find, session, head, here=stage == stages - 1)))
    return matrices


def squares(run: Run, rows: range) -> torch.Tensor:
    """Add up the squares of each of R rows, as far as the run has them: [R] in fp64, on the CPU."""
    sums = torch.zeros(len(rows), dtype=torch.float64)
    for row, block in run.blocks(rows):
        _place(rows, row, block.square().sum(1), sums)
    return sums


def comparison(run: Run, start: Run, rows: range) -> torch.Tensor:
    """Compare each of R rows with how it was: [R, 4] in fp64, on the CPU.

    Args:
        run: the rows now.
        start: the same run of the rows as they were, anywhere and in any floating dtype.
        rows: the R rows.

    Returns:
        Squares now, products of now and then, squares then, squares of the difference, each added up along the row as
        far as the runs have it.
    """
    sums = torch.zeros(len(rows), 4, dtype=torch.float64)
    for (row, now), (_, then) in zip(run.blocks(rows), start.blocks(rows, run.values.device), strict=True):
        columns = (now.square(), now * then, then.square(), (now - then).square())
        _place(rows, row, torch.stack([column.sum(1) for column in columns], 1), sums)
    return sums


def products(run: Run, rows: range, others: torch.Tensor) -> torch.Tensor:
    """Multiply each of R rows with K vectors, as far as the run has it: [R, K] in fp64, on the CPU.

    Args:
        run: this rank's.
        rows: the R rows.
        others: [K, width] in fp32.
    """
    sums = torch.zeros(len(rows), len(others), dtype=torch.float64)
    for row, block in run.blocks(rows):
        _place(rows, row, block @ others.to(block.device).T, sums)
    return sums


def whole_rows(run: Run, numbers: list[int]) -> torch.Tensor:
    """Bring a few rows together on every rank: [K, width] in fp32, on the CPU; a collective call."""
    rows = torch.zeros(len(numbers), run.width, dtype=torch.float64)
    for place, number in enumerate(numbers):
        for _, block in run.blocks(range(number, number + 1)):
            rows[place] = block[0]
    return over_ranks(rows).float()


def over_ranks(sums: torch.Tensor) -> torch.Tensor:
    """Add a tensor over all ranks; every rank gets the sum, on the CPU."""
    total = sums.to(ranks.device())
    dist.all_reduce(total)
    return total.cpu()


def _place(rows: range, row: int, values: torch.Tensor, sums: torch.Tensor) -> None:
    sums[row - rows.start : row - rows.start + len(values)] = values.to("cpu", torch.float64)


def _find(session: Session, module: Any, here: bool) -> tuple[int, torch.Tensor] | None:
    """Find this rank's run of a module's weight."""
    parameter = getattr(module, "weight", None)
    if not here or not isinstance(parameter, torch.nn.Parameter):
        return None
    if is_gemini(session):
        return _find_in_chunk(session.model, parameter)
    values, place, count = session.saved_weights.held(parameter)
    if count == 1:  # the ranks that see other rows have the same numbers: each is given its part of them
        if session.mesh.place[3]:
            return None
        size = -(-len(values) // session.mesh.data_size)
        place = session.mesh.data_rank
        values = values[place * size : (place + 1) * size]
    else:
        size = len(values)
        values = values[: max(parameter.numel() - place * size, 0)]  # behind it is padding
    first_row = getattr(parameter, "first_row", 0)  # of a matrix that is divided by rows
    return first_row * parameter.shape[1] + place * size, values


def _find_in_chunk(model: Any, parameter: torch.nn.Parameter) -> tuple[int, torch.Tensor] | None:
    masters = dict(zip(model.fp16_params, model.fp32_params, strict=True))
    if parameter not in masters:  # frozen: Gemini leaves it alone
        return (0, parameter.detach().flatten()) if ranks.is_first() else None
    master = masters[parameter]
    chunk = model.chunk_manager.get_chunk(master)
    place = chunk.tensors_info[master]
    if chunk.is_gathered:
        whole = chunk.cuda_global_chunk[place.offset : place.end]
        return (0, whole) if chunk.pg_rank == 0 else None
    begin, end = max(place.offset, chunk.shard_begin), min(place.end, chunk.shard_end)
    if begin >= end:
        return None
    shard = chunk.cuda_shard if chunk.cuda_shard is not None else chunk.cpu_shard
    return begin - place.offset, shard[begin - chunk.shard_begin : end - chunk.shard_begin]
