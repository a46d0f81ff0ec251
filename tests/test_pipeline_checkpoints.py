"""Checkpoints change nothing: training goes as if none had been written, and on from each as if it had not ended."""

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.checkpoints import find_checkpoints, gather_state, write_checkpoint

STEPS = 3


def make() -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
    model(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_three_steps_are_those_of_torchs_adamw_from_every_checkpoint(tmp_path: Path) -> None:
    """From that before the first step too: an AdamW that has stepped on nothing steps otherwise ever after."""
    model, optimizer = make()
    for number in range(STEPS):
        step(model, optimizer, number)
    expected = weights(model)
    kept, optimizer = make()
    for number in range(STEPS):
        write_checkpoint(tmp_path, number, *gather_state(kept, optimizer), {})
        step(kept, optimizer, number)
    assert torch.equal(weights(kept), expected)
    found = find_checkpoints(tmp_path)
    assert [checkpoint.step for checkpoint in found] == [0, 1, 2]
    for checkpoint in found:
        model, optimizer = make()
        checkpoint.load_model(model)
        checkpoint.load_optimizer(model, optimizer)
        for number in range(checkpoint.step, STEPS):
            step(model, optimizer, number)
        assert torch.equal(weights(model), expected), checkpoint.step
