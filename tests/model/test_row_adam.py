"""Row by row it is torch's Adam, as if every row had an optimizer of its own."""

from __future__ import annotations

import torch

from colossal_llama2.model.row_adam import RowAdam


def test_each_row_moves_as_under_an_adam_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn((4, 3), generator=generator)
    alone = [torch.nn.Parameter(row.clone()) for row in start]
    optimizers = [torch.optim.Adam([row], lr=1.0, betas=(0.9, 0.999), eps=1e-8) for row in alone]
    ours = RowAdam(start.clone())
    for step, which in enumerate([[0], [0, 1], [1, 2], [0], [2], [0, 1, 2]]):
        lr = 0.1 / (step + 1)
        gradient = torch.randn((len(which), 3), generator=generator)
        ours.step(torch.tensor(which), gradient, lr)
        for row, one in zip(which, gradient, strict=True):
            optimizers[row].param_groups[0]["lr"] = lr
            alone[row].grad = one
            optimizers[row].step()
    for row in range(3):
        assert torch.allclose(ours.rows[row], alone[row].detach(), atol=1e-6)
    assert torch.equal(ours.rows[3], start[3])
    assert ours.steps[:, 0].tolist() == [4, 3, 3, 0]
