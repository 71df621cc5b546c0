"""Every rank has one place, and those that see the same rows or the same loss are counted once."""

from __future__ import annotations

import itertools

import pytest

from colossal_llama2.engine.mesh import Mesh
from colossal_llama2.engine.plugins import PluginSettings
from colossal_llama2.errors import InputError


@pytest.mark.parametrize(("world", "pp", "tp", "sp"), [(1, 1, 1, 1), (8, 2, 2, 1), (16, 2, 2, 2), (12, 3, 1, 2)])
def test_places_are_all_different_and_in_colossalai_s_order(world: int, pp: int, tp: int, sp: int) -> None:
    meshes = [Mesh.of(rank, world, pp, tp, sp) for rank in range(world)]
    grid = list(itertools.product(range(world // (pp * tp * sp)), range(pp), range(tp), range(sp)))
    assert [mesh.place for mesh in meshes] == grid  # row by row: the sequence varies fastest
    for share in range(meshes[0].data_size):
        same_rows = [mesh for mesh in meshes if mesh.data_rank == share]
        assert len(same_rows) == pp * tp * sp
        assert sum(mesh.speaks_for_rows for mesh in same_rows) == 1
        (speaker,) = [mesh for mesh in same_rows if mesh.speaks_for_loss]
        assert speaker.place[1] == pp - 1, "the loss is known on the last stage alone"


def test_split_gather_takes_no_ranks_of_its_own() -> None:
    settings = PluginSettings("3d", "bf16", tp=2, sp=2, sp_mode="split_gather")
    assert settings.mesh(3, 4).sizes == (2, 1, 2, 1)
    assert PluginSettings("3d", "bf16", tp=2, sp=2).mesh(3, 4).sizes == (1, 1, 2, 2)


def test_degrees_that_do_not_divide_the_ranks_are_refused() -> None:
    with pytest.raises(InputError, match="6 ranks cannot be divided by pp 2 x tp 2 x sp 1; start a multiple of 4"):
        PluginSettings("3d", "bf16", tp=2, pp=2).mesh(0, 6)
