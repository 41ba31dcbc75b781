"""If one of these fails, recomputing an activation changes gradients or stores too much."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from spanet_lightning import SPANet, SPANetV2
from spanet_lightning.backbones.activated_conv import GELU, SQUARED_RELU, activated_conv1x1
from spanet_lightning.backbones.layers import DepthwiseRow

LITERAL = {"gelu": (GELU, F.gelu), "squared_relu": (SQUARED_RELU, lambda h: F.relu(h) ** 2)}


def case(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    h = torch.randn(2, 6, 5, 4, generator=g, dtype=dtype).contiguous(
        memory_format=torch.channels_last
    )
    weight = torch.randn(3, 6, 1, 1, generator=g, dtype=dtype)
    bias = torch.randn(3, generator=g, dtype=dtype)
    return [t.requires_grad_() for t in (h, weight, bias)]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("name", LITERAL)
def test_recomputed_and_stored_activations_give_the_same_gradients(name, with_bias):
    activation, literal = LITERAL[name]
    h, weight, bias = case()
    used = (h, weight, bias) if with_bias else (h, weight)
    expected = F.conv2d(literal(h), weight, bias if with_bias else None)
    cotangent = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    slow = torch.autograd.grad(expected, used, cotangent)
    for recompute in (True, False):
        y = activated_conv1x1(
            h, weight, bias if with_bias else None, activation, recompute=recompute
        )
        assert torch.allclose(y, expected, atol=1e-12)
        # Twice: the first backward pass must leave what it stored as it was.
        for keep in (True, False):
            fast = torch.autograd.grad(y, used, cotangent, retain_graph=keep)
            for a, b in zip(fast, slow, strict=True):
                assert torch.allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("name", LITERAL)
def test_without_gradients_the_result_is_the_same(name):
    activation, literal = LITERAL[name]
    h, weight, bias = case()
    with torch.no_grad():
        expected = F.conv2d(literal(h), weight, bias)
        y = activated_conv1x1(h.clone(), weight, bias, activation, recompute=True)
    assert torch.allclose(y, expected, atol=1e-12)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_frozen_input_gets_no_gradient_and_the_others_theirs(frozen):
    inputs = case()
    inputs[frozen].requires_grad_(False)
    y = activated_conv1x1(*inputs, GELU, recompute=True)
    expected = F.conv2d(F.gelu(inputs[0]), *inputs[1:])
    used = [t for i, t in enumerate(inputs) if i != frozen]
    for a, b in zip(
        torch.autograd.grad(y.sum(), used), torch.autograd.grad(expected.sum(), used), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-12)


def test_training_stores_one_of_the_two_hidden_tensors_of_an_mlp():
    model = SPANet("test", num_classes=3).train()
    stored: list[tuple[int, ...]] = []

    def pack(tensor):
        stored.append(tuple(tensor.shape))
        return tensor

    x = torch.randn(1, 3, 64, 64)
    hidden = {(1, 4 * 24, 16, 16), (1, 4 * 36, 8, 8), (1, 4 * 48, 4, 4), (1, 4 * 60, 2, 2)}
    counts = {}
    for training in (True, False):
        stored.clear()
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            model.train(training)(x)
        counts[training] = sum(shape in hidden for shape in stored)
    assert counts[False] == 2 * counts[True] == 2 * 5  # five blocks


@pytest.mark.parametrize("name", LITERAL)
def test_autocast_gives_gradients_in_the_types_of_the_parameters(name):
    activation, _ = LITERAL[name]
    found = {}
    for recompute in (True, False):
        x = torch.randn(2, 4, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        first = torch.randn(6, 4, 1, 1, generator=torch.Generator().manual_seed(1)).requires_grad_()
        _, weight, bias = case(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            y = activated_conv1x1(F.conv2d(x, first), weight, bias, activation, recompute=recompute)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        found[recompute] = [t.grad for t in (x, first, weight, bias)]
    for a, b in zip(found[True], found[False], strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).norm() <= 0.02 * b.norm()


def test_rows_as_images_of_their_own_are_the_depthwise_convolution():
    torch.manual_seed(0)
    conv = DepthwiseRow(6, 5).double()
    x = torch.randn(2, 6, 7, 4, dtype=torch.float64)
    for layout in (torch.channels_last, torch.contiguous_format):
        x = x.contiguous(memory_format=layout).requires_grad_()
        results = {}
        for training in (True, False):
            y = conv.train(training)(x)
            assert y.is_contiguous(memory_format=layout)
            grads = torch.autograd.grad(y.square().sum(), (x, conv.weight, conv.bias))
            results[training] = (y, *grads)
        for a, b in zip(results[True], results[False], strict=True):
            assert torch.allclose(a, b, atol=1e-12)
        x = x.detach()


# torch 2.14's own forward mode still scripts its decompositions.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("cls", [SPANet, SPANetV2])
def test_evaluation_can_be_differentiated_forwards(cls):
    """Analyses linearise mixers by it; recomputing is for training alone."""
    torch.manual_seed(0)
    model = cls("test", num_classes=3).eval().double()
    x, v = torch.randn(2, 1, 3, 64, 64, dtype=torch.float64)
    _, slope = torch.func.jvp(model, (x,), (v,))
    numeric = (model(x + 1e-6 * v) - model(x - 1e-6 * v)) / 2e-6
    assert (slope - numeric).norm() <= 1e-6 * numeric.norm()
