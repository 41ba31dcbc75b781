"""The papers' token mixers and MLPs as written, from the tensors of our modules.

Every function takes features (B, C, H, W) and a module of ours, reads nothing but its parameters,
and computes with plain loops over gates and heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.reference import filters


def _linear(x: Tensor, conv: nn.Conv2d) -> Tensor:
    weight = conv.weight[:, :, 0, 0]
    y = torch.einsum("dc,bchw->bdhw", weight, x)
    return y if conv.bias is None else y + conv.bias[:, None, None]


def _depthwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Sum shifted copies: no convolution routine involved."""
    _, _, k, m = conv.weight.shape
    padded = F.pad(x, (m // 2, m // 2, k // 2, k // 2))
    height, width = x.shape[2:]
    out = torch.zeros_like(x)
    for i in range(k):
        for j in range(m):
            tap = conv.weight[:, 0, i, j][:, None, None]
            out = out + tap * padded[:, :, i : i + height, j : j + width]
    return out if conv.bias is None else out + conv.bias[:, None, None]


def spam_v1(
    x: Tensor,
    mixer: nn.Module,
    *,
    radius: float | None,
    balance: tuple[float, ...],
    ring: float | None,
    aggregation: str,
) -> Tensor:
    """V1: q = DW_k×1 DW_1×k W_in x; ctx = Σ_b (W_b SPF(q_b) + c_b); y = W_out (q ⊙ ctx).

    With "hadamard" the context is Π_b (W_b SPF(q_b) + c_b).
    """
    q = _depthwise(_depthwise(_linear(x, mixer.proj_in), mixer.local_w), mixer.local_h)
    weights = torch.split(
        mixer.gates.weight[:, :, 0, 0], [c.shape[1] for c in q.chunk(len(balance), 1)], dim=1
    )
    product = aggregation == "hadamard"
    context = torch.ones_like(q) if product else torch.zeros_like(q)
    for chunk, weight, bias, lam in zip(
        q.chunk(len(balance), 1), weights, mixer.gates.bias, balance, strict=True
    ):
        filtered = chunk if radius is None else filters.spf(chunk, radius, lam, ring)
        gate = torch.einsum("dc,bchw->bdhw", weight, filtered) + bias[:, None, None]
        context = context * gate if product else context + gate
    return _linear(q * context, mixer.proj_out)


def spam_v2(x: Tensor, mixer: nn.Module, *, head_layout: str) -> Tensor:
    """V2: heads of depthwise convolutions, SRF each, grouped expansion, modulation of the query."""
    heads = len(mixer.local)
    batch, channels, height, width = x.shape
    q = F.gelu(_linear(x, mixer.query))
    filtered = []
    for i, head in enumerate(_linear(x, mixer.context).chunk(heads, 1)):
        local = _depthwise(head, mixer.local[i])
        if isinstance(mixer.srf, nn.Identity):
            filtered.append(local)
            continue
        logits = mixer.srf.logits[i]
        if logits.shape[-2:] != (height, width // 2 + 1):
            logits = F.interpolate(
                logits[None], (height, width // 2 + 1), mode="bicubic", align_corners=True
            )[0]
        alpha = getattr(mixer.srf, "alpha", 1.0)
        filtered.append(filters.srf(local, logits, alpha))
    if head_layout == "interleaved":
        order = [(h, j) for j in range(channels // heads) for h in range(heads)]
    else:
        order = [(h, j) for h in range(heads) for j in range(channels // heads)]
    context = torch.stack([filtered[h][:, j] for h, j in order], dim=1)
    groups = channels // heads
    expanded = []
    for g, part in enumerate(context.chunk(groups, 1)):
        size = mixer.expand.weight.shape[0] // groups
        weight = mixer.expand.weight[g * size : (g + 1) * size, :, 0, 0]
        expanded.append(torch.einsum("dc,bchw->bdhw", weight, part))
    z = torch.cat(expanded, 1)
    flat = z.reshape(batch, -1)
    mean, var = flat.mean(1), flat.var(1, correction=0)
    z = (z - mean[:, None, None, None]) / torch.sqrt(var + 1e-5)[:, None, None, None]
    z = z * mixer.norm.weight[:, None, None] + mixer.norm.bias[:, None, None]
    return _linear(q * _linear(F.gelu(z), mixer.reduce), mixer.proj)


def attention(x: Tensor, mixer: nn.Module) -> Tensor:
    """Softmax(QKᵀ/√32)V in heads of 32, plus the depthwise convolution of V where there is one."""
    batch, _, height, width = x.shape
    q, k, v = _linear(x, mixer.qkv).flatten(2).chunk(3, 1)
    out = []
    for start in range(0, q.shape[1], 32):
        part = slice(start, start + 32)
        scores = q[:, part].transpose(1, 2) @ k[:, part] / math.sqrt(32)
        out.append((scores.softmax(-1) @ v[:, part].transpose(1, 2)).transpose(1, 2))
    y = torch.cat(out, 1).reshape(batch, -1, height, width)
    if mixer.local is not None:
        y = y + _depthwise(v.reshape(y.shape), mixer.local)
    return _linear(y, mixer.proj)


def star_relu_mlp(x: Tensor, mlp: nn.Module) -> Tensor:
    """W_2 (s·relu(W_1 x)² + b)."""
    hidden = _linear(x, mlp.fc1)
    return _linear(mlp.act.scale * F.relu(hidden) ** 2 + mlp.act.bias, mlp.fc2)
