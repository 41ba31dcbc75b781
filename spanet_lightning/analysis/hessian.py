"""Largest eigenvalues of the Hessian of the loss, mini-batch by mini-batch.

Park and Kim (ICLR 2022, arXiv:2202.06709, Fig. 4) compare models by the spectrum of the largest
Hessian eigenvalues over mini-batches: large ones make training hard, negative ones make the loss
non-convex. The loss is the mean cross-entropy of a mini-batch, plus half the weight decay times the
squared norm of the weights. Eigenvalues are found by power iteration on Hessian-vector products
(two backward passes each), with deflation: by magnitude, so that negative ones appear among them.

Memory is that of one training step and one vector of the weights' size per eigenvalue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from spanet_lightning.analysis.figures import Curve, Figure, Panel
from spanet_lightning.analysis.images import Batch, normalise
from spanet_lightning.analysis.models import LoadedModel
from spanet_lightning.errors import DataError, invalid


@dataclass(frozen=True)
class HessianSpectrum:
    """The largest eigenvalues of one model.

    Attributes:
        model: Its label.
        eigenvalues: (B, K) of each mini-batch, in the order they were found.
        converged: Share of them that reached the tolerance.
        images: Number of images.
    """

    model: str
    eigenvalues: Float[np.ndarray, "b k"]
    converged: float
    images: int


def hessian_spectrum(
    model: LoadedModel,
    batches: Iterable[Batch],
    top: int = 5,
    iterations: int = 100,
    tolerance: float = 1e-3,
    weight_decay: float = 0.0,
    seed: int = 0,
) -> HessianSpectrum:
    """Compute the eigenvalues of largest magnitude of each mini-batch.

    Args:
        model: A classifier, in evaluation mode: batch norm uses its running statistics.
        batches: Images in [0, 1] and their classes; without labels, the model's own decisions are
            the classes.
        top: Eigenvalues per mini-batch.
        iterations: At most, per eigenvalue.
        tolerance: Relative change of an eigenvalue at which it has converged.
        weight_decay: Of the L2 term.
        seed: Of the first vectors.

    Raises:
        ConfigError: If a value is out of range.
        DataError: If there is no image.
    """
    for key, value in (("--top", top), ("--iterations", iterations)):
        if value < 1:
            raise invalid(key, value, "an integer of at least 1")
    net = model.model
    parameters = [p for p in net.parameters() if p.is_floating_point()]
    rows, converged, images = [], [], 0
    rng = torch.Generator().manual_seed(seed)
    try:
        for p in parameters:
            p.requires_grad_()
        for inputs, labels in batches:
            with sdpa_kernel(SDPBackend.MATH):  # the one with second derivatives
                logits = model.logits(normalise(inputs, model))
                wanted = logits.argmax(1) if labels is None else labels
                loss = F.cross_entropy(logits, wanted)
                if weight_decay:
                    loss = loss + weight_decay / 2 * sum(p.square().sum() for p in parameters)
                gradients = torch.autograd.grad(
                    loss, parameters, create_graph=True, allow_unused=True
                )
                values, done = _power_iteration(
                    parameters, gradients, top, iterations, tolerance, rng
                )
            rows.append(values)
            converged += done
            images += len(inputs)
            del logits, loss, gradients
    finally:
        for p in parameters:
            p.requires_grad_(False)
    if not rows:
        raise DataError("--images: got none")
    return HessianSpectrum(model.label, np.array(rows), float(np.mean(converged)), images)


def _power_iteration(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    top: int,
    iterations: int,
    tolerance: float,
    rng: torch.Generator,
) -> tuple[list[float], list[bool]]:
    """Return eigenvalues of largest magnitude, and whether each has converged."""
    used = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    weights, slopes = [p for p, _ in used], [g for _, g in used]

    def product(vector: Tensor) -> Tensor:
        parts = torch.split(vector, [p.numel() for p in weights])
        shaped = [part.view_as(p) for part, p in zip(parts, weights, strict=True)]
        products = torch.autograd.grad(
            slopes, weights, grad_outputs=shaped, retain_graph=True, materialize_grads=True
        )
        return torch.cat([one.reshape(-1) for one in products])

    size = sum(p.numel() for p in weights)
    values: list[float] = []
    done: list[bool] = []
    basis: list[Tensor] = []

    def deflated(vector: Tensor) -> Tensor:
        for known in basis:
            vector = vector - (vector @ known) * known
        return vector

    for _ in range(min(top, size)):
        vector = deflated(torch.randn(size, generator=rng).to(weights[0]))
        vector = vector / vector.norm()
        value, settled = float("nan"), False
        for _ in range(iterations):
            image = deflated(product(vector))
            last, value = value, float(vector @ image)
            norm = image.norm()
            settled = abs(value - last) <= tolerance * abs(value) or not norm > 0
            if settled:
                break
            vector = image / norm
        values.append(value)
        done.append(settled)
        basis.append(vector)
    return values, done


def hessian_figure(found: Sequence[HessianSpectrum], title: str) -> Figure:
    """Return the eigenvalues of all mini-batches as cumulative distributions, a curve per model."""
    curves = []
    rows: list[dict[str, Any]] = []
    for i, one in enumerate(found):
        x = np.sort(one.eigenvalues.ravel())
        y = np.arange(1, len(x) + 1) / len(x)
        curves.append(Curve(x, y, one.model, i))
        rows += [
            {"model": one.model, "batch": b, "rank": k + 1, "eigenvalue": float(value)}
            for (b, k), value in np.ndenumerate(one.eigenvalues)
        ]
    panel = Panel(
        curves=tuple(curves),
        xlabel="Hessian eigenvalue",
        ylabel="share of eigenvalues up to it",
        vlines=((0.0, 7),),
    )
    return Figure(title, ((panel,),), legend="-", table=rows)
