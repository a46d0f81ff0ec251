"""Checkpoints change nothing: training goes as if none had been written, and on from each as if it had not ended."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
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


def test_weights_under_other_names_are_refused(tmp_path: Path) -> None:
    """All of them, one too many, one too few: nothing is put into the model."""
    from safetensors.torch import load_file, save_file

    model, optimizer = make()
    checkpoint = write_checkpoint(tmp_path, 0, *gather_state(model, optimizer), {})
    path = checkpoint.directory / "model.safetensors"
    good, before = load_file(path), weights(model)
    renamed = {f"renamed.{name}": weight + 1 for name, weight in good.items()}
    more, less = {name: weight + 1 for name, weight in good.items()} | renamed, {"weight": good["weight"] + 1}
    for bad, count in ((renamed, 4), (more, 2), (less, 1)):
        save_file(bad, path)
        with pytest.raises(ValueError, match=f"other weights than are trained here: {count} names are in one alone"):
            checkpoint.load_model(model)
        assert torch.equal(weights(model), before)
    model.bias.requires_grad_(False)  # and what is frozen need not be there
    save_file(less, path)
    checkpoint.load_model(model)
    assert torch.equal(model.weight, good["weight"] + 1)


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """As if the disk was full after so many bytes of a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_an_oserror_that_names_the_file(tmp_path: Path) -> None:
    """Which a command tells in one sentence; safetensors has an exception of its own for it."""
    from heads.saving import save_tensors

    large = {"weight": torch.zeros(2**18)}
    with no_room(2**16), pytest.raises(OSError, match=r"model\.safetensors could not be written .* is the disk full"):
        write_checkpoint(tmp_path, 0, large, {}, {})
    assert find_checkpoints(tmp_path) == []
    with no_room(2**16), pytest.raises(OSError, match=r"head\.safetensors could not be written"):
        save_tensors(tmp_path, "linear", options={}, fitted={}, tensors=large)


def test_a_model_that_the_disk_has_no_room_for_is_an_oserror(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaModel

    from pipeline.classifier import write_classifier

    config = LlamaConfig(vocab_size=4096, hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    base = LlamaModel(config)
    with no_room(2**16), pytest.raises(OSError, match="could not be written"):
        write_classifier(tmp_path, LlamaForSequenceClassification, base, torch.zeros(64), 0)
