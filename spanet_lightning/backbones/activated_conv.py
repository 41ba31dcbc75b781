"""An activation followed by a 1×1 convolution, without keeping the activation's result.

    y = W·φ(h) + c

Autograd would store h, to differentiate φ, and φ(h), to differentiate W. In the channel MLPs these
are the two largest tensors of a block, so φ(h) is computed again in the backward pass instead: it
costs one more pass over h and saves a quarter of a block's memory. Where no gradient is due, φ is
applied in the memory of h: a large result costs more for its fresh memory than for its arithmetic.
(`spanet bench models` shows both: see docs/performance.md.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Activation(NamedTuple):
    """An element-wise function φ in the three forms that are needed.

    Attributes:
        function: φ(h), for autograd and compilers.
        in_place: φ(h) in the memory of h.
        times_derivative: φ'(h)·g from g and h, in the memory of g.
    """

    function: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor]
    times_derivative: Callable[[Tensor, Tensor], Tensor]


GELU = Activation(
    F.gelu,
    torch.ops.aten.gelu_,
    lambda g, h: torch.ops.aten.gelu_backward.grad_input(g, h, grad_input=g),
)
SQUARED_RELU = Activation(
    lambda h: F.relu(h).square(),
    lambda h: h.relu_().square_(),
    lambda g, h: g.mul_(F.relu(h)).mul_(2),
)


def activated_conv1x1(
    h: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "d c 1 1"],
    bias: Float[Tensor, " d"] | None,
    activation: Activation,
    *,
    recompute: bool,
) -> Float[Tensor, "b d h w"]:
    """Return the 1×1 convolution of φ(h).

    Args:
        h: Pre-activations. Overwritten where gradients are off.
        weight: The convolution's weight.
        bias: Its bias.
        activation: φ.
        recompute: Whether the backward pass computes φ(h) again rather than store it. The result
            can then be differentiated once, in reverse mode.
    """
    if torch.compiler.is_compiling():  # a compiler fuses, and chooses what to store, by itself
        return F.conv2d(activation.function(h), weight, bias)
    if not torch.is_grad_enabled():
        return F.conv2d(activation.in_place(h), weight, bias)
    if recompute:
        y: Tensor = _ActivatedConv1x1.apply(h, weight, bias, activation)
        return y
    return F.conv2d(activation.function(h), weight, bias)


class _ActivatedConv1x1(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation
    ) -> Tensor:
        ctx.save_for_backward(h, weight)
        ctx.activation = activation
        return F.conv2d(activation.function(h), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        h, weight = ctx.saved_tensors
        activation: Activation = ctx.activation
        # Under autocast the convolution ran in the type of `grad`, while weights keep their own.
        grad_a, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad,
            activation.function(h).to(grad.dtype),
            weight.to(grad.dtype),
            None,
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            1,
            [*ctx.needs_input_grad[:2], False],
        )
        # A plain sum: oneDNN's own gradient of the bias slows that of the weight down.
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        grad_h = None
        if grad_a is not None:
            grad_h = activation.times_derivative(grad_a.to(h.dtype), h)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_h, grad_weight, grad_bias, None
