"""Chunks are laid out as ColossalAI lays them out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from colossal_llama2.engine import compat, ranks
from colossal_llama2.engine.gemini_chunks import Chunk, lay_out_chunks
from colossal_llama2.engine.plugins import chunk_sizes


@pytest.fixture
def process_group() -> Iterator[None]:
    """Make a process group of this process alone."""
    ranks.launch(seed=0)
    yield
    ranks.close()


class Several(nn.Module):
    """Parameters of given sizes, without memory."""

    def __init__(self, sizes: list[int], hidden: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(size, device="meta")) for size in sizes)
        self.config = type("Config", (), {"hidden_size": hidden})


@pytest.mark.parametrize(
    ("sizes", "hidden"),
    [
        ([500_000, *[4096, 4096, 9000, 9000, 64] * 12, 64, 500_000], 64),
        ([*[130] * 40], 8),
        ([300_000_000, *[16_777_216] * 28, *[45_088_768] * 21, 4096, 300_000_000], 4096),
    ],
)
def test_the_size_is_what_colossalai_finds(process_group: None, sizes: list[int], hidden: int) -> None:
    compat.install()
    from colossalai.zero.gemini.chunk.search_utils import search_chunk_configuration

    model = Several(sizes, hidden)
    asked = chunk_sizes(model)
    asked["search_interval"] = asked.pop("hidden_dim")
    found, _, _ = search_chunk_configuration(model, **asked)
    assert not found[1]["keep_gathered"]
    chunks = lay_out_chunks(sizes, sizes, 1, hidden)
    assert sum(chunk.used for chunk in chunks) == sum(sizes)
    ordinary = {chunk.size for chunk in chunks if chunk.used not in sizes}
    assert ordinary == {found[1]["chunk_size"]}


def test_what_is_larger_than_a_chunk_has_one_of_its_own() -> None:
    chunks = lay_out_chunks([3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 1001], [3, 3, 1001, 3], 2, 4)
    size = chunks[0].size
    assert size < 1001
    assert chunks == [Chunk(size, 6), Chunk(1002, 1001), Chunk(size, 3)]
    assert chunks[1].shard(2) == chunks[1].used_of_first_shard(2) == 501
    assert chunks[2].used_of_first_shard(2) == 3
