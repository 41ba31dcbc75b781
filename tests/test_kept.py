"""If one of these fails, an evaluation uses gates of weights that have changed, or wastes them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from spanet_lightning import SPANetV2
from spanet_lightning.backbones.spanetv2 import SpectralRescaling


@pytest.fixture
def filtering(monkeypatch):
    """A filter in evaluation mode, an input, and the list of sizes that gains were built for."""
    torch.manual_seed(0)
    module = SpectralRescaling(4, 2, (8, 8), "scaled_sigmoid", "auto").eval()
    built = []
    gain = SpectralRescaling.gain

    def counted(self, height, width):
        built.append((height, width))
        return gain(self, height, width)

    monkeypatch.setattr(SpectralRescaling, "gain", counted)
    return module, torch.randn(2, 4, 8, 8), built


def fresh(module, x):
    """What the module computes without anything kept."""
    return copy.deepcopy(module)(x)


def test_gains_are_built_once_for_a_size(filtering):
    module, x, built = filtering
    with torch.no_grad():
        first, second = module(x), module(x)
        module(torch.randn(1, 4, 6, 7))
    assert torch.equal(first, second)
    assert built == [(8, 8), (6, 7)]


CHANGES = {
    "optimizer": lambda m: torch.optim.SGD(
        [p for p in m.parameters() if p.grad is not None], lr=5.0
    ).step(),
    "load_state_dict": lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}),
    "in place": lambda m: m.logits[1].detach().mul_(-3),
    "alpha": lambda m: m.alpha.detach().fill_(2.0),
    "double": lambda m: m.double(),
    "new parameter": lambda m: setattr(m, "alpha", torch.nn.Parameter(torch.full((1,), 3.0))),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES)
def test_every_change_of_a_parameter_builds_them_anew(filtering, change, mode):
    module, x, _ = filtering
    module(x).sum().backward()
    with mode():
        before = module(x)
    with torch.no_grad():
        CHANGES[change](module)
    with mode():
        after = module(x)
        assert torch.equal(after, fresh(module, x))
    assert change == "double" or not torch.allclose(before, after)


def test_training_and_gradients_never_use_what_is_kept(filtering):
    module, x, built = filtering
    with torch.inference_mode():
        module(x)
    module(x).sum().backward()  # evaluation mode, with gradients
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    with torch.no_grad():
        module.train()(x)
    assert len(built) == 3


def test_copies_and_pickles_start_empty_and_state_is_parameters_alone(filtering):
    module, x, built = filtering
    names = set(module.state_dict())
    with torch.inference_mode():
        expected = module(x)
        size = len(pickle.dumps(module))
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(other(x), expected)
    assert len(built) == 3
    assert set(module.state_dict()) == names
    assert len(pickle.dumps(module)) == size


def test_a_models_evaluation_after_a_step_is_that_of_its_new_weights():
    torch.manual_seed(0)
    model = SPANetV2("test", num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    x = torch.randn(2, 3, 64, 64)
    for _ in range(2):
        model.train()(x).square().sum().backward()
        optimizer.step()
        with torch.inference_mode():
            model.eval()
            assert torch.equal(model(x), model(x))
            assert torch.equal(model(x), copy.deepcopy(model)(x))
