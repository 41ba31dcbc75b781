"""Names and shapes of the official state dicts, from depths and dims.

Written from the official layouts, independent of the package's own table of names.
"""

from __future__ import annotations

from collections.abc import Sequence

Schema = dict[str, tuple[int, ...]]


def v1(
    depths: Sequence[int], dims: Sequence[int], num_classes: int, sizes: Sequence[int]
) -> Schema:
    """Official SPANet classifier; `sizes` are the sides of the four stages."""
    out: Schema = {}

    def conv(name: str, *shape: int) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = shape, shape[:1]

    conv("patch_embed.proj", dims[0], 3, 7, 7)
    for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        if i:
            conv(f"network.{2 * i - 1}.proj", dim, dims[i - 1], 3, 3)
        for j in range(depth):
            b = f"network.{2 * i}.{j}"
            for norm in ("norm1", "norm2"):
                out[f"{b}.{norm}.weight"] = out[f"{b}.{norm}.bias"] = (dim,)
            m = f"{b}.token_mixer"
            conv(f"{m}.proj_in", dim, dim, 1, 1)
            conv(f"{m}.proj_out", dim, dim, 1, 1)
            conv(f"{m}.conv.0", dim, 1, 1, 7)
            conv(f"{m}.conv.1", dim, 1, 7, 1)
            chunk = -(-dim // 3)
            for g, size in enumerate((chunk, chunk, dim - 2 * chunk)):
                conv(f"{m}.pws.{g}", dim, size, 1, 1)
                out[f"{m}.sps.{g}.filter"] = (1, sizes[i], sizes[i])
            conv(f"{b}.mlp.fc1", 4 * dim, dim, 1, 1)
            conv(f"{b}.mlp.fc2", dim, 4 * dim, 1, 1)
            if i >= 2:
                out[f"{b}.res_scale1.scale"] = out[f"{b}.res_scale2.scale"] = (dim,)
    out["norm.weight"] = out["norm.bias"] = (dims[-1],)
    conv("head", num_classes, dims[-1])
    return out


def v2(
    depths: Sequence[int],
    dims: Sequence[int],
    num_classes: int,
    sizes: Sequence[int],
    mixers: Sequence[str] = ("spam",) * 4,
    *,
    concatenated: bool = False,
) -> Schema:
    """Official SPANetV2 classifier in either layout; `sizes` are the sides of the four stages."""
    out: Schema = {}
    for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        down = f"downsample_layers.{i}"
        before = 3 if i == 0 else dims[i - 1]
        k = 7 if i == 0 else 3
        out[f"{down}.conv.weight"], out[f"{down}.conv.bias"] = (dim, before, k, k), (dim,)
        if i == 0:
            out[f"{down}.post_norm.weight"] = (dim,)
        else:
            out[f"{down}.pre_norm.weight"] = (before,)
        for j in range(depth):
            b = f"stages.{i}.{j}"
            out[f"{b}.norm1.weight"] = out[f"{b}.norm2.weight"] = (dim,)
            out[f"{b}.mlp.fc1.weight"], out[f"{b}.mlp.fc2.weight"] = (4 * dim, dim), (dim, 4 * dim)
            out[f"{b}.mlp.act.scale"] = out[f"{b}.mlp.act.bias"] = (1,)
            if i >= 2:
                out[f"{b}.res_scale1.scale"] = out[f"{b}.res_scale2.scale"] = (dim,)
            m = f"{b}.token_mixer"
            if mixers[i] != "spam":
                out[f"{m}.qkv.weight"], out[f"{m}.proj.weight"] = (3 * dim, dim), (dim, dim)
                if mixers[i] == "mixed":
                    out[f"{m}.local_conv.weight"] = (dim, 1, 7, 7)
                continue
            for name in ("query.0", "ctx", "proj_out"):
                out[f"{m}.{name}.weight"] = (dim, dim)
            head, bins = dim // 4, sizes[i] // 2 + 1
            for h, size in enumerate((3, 5, 7, 9)):
                local = f"{m}.local_convs.{h}" if concatenated else f"{m}.local_conv_{h + 1}"
                out[f"{local}.weight"], out[f"{local}.bias"] = (head, 1, size, size), (head,)
                if not concatenated:
                    out[f"{m}.filter_{h + 1}"] = (head, sizes[i], bins)
            if concatenated:
                out[f"{m}.filter"], out[f"{m}.scale.alpha"] = (dim, sizes[i], bins), (1,)
            out[f"{m}.proj.0.weight"], out[f"{m}.proj.3.weight"] = (
                (2 * dim, 4, 1, 1),
                (dim, 2 * dim, 1, 1),
            )
            out[f"{m}.proj.1.weight"] = out[f"{m}.proj.1.bias"] = (2 * dim,)
    out["norm.weight"] = out["norm.bias"] = (dims[-1],)
    hidden = 4 * dims[-1]
    out["head.fc1.weight"], out["head.fc1.bias"] = (hidden, dims[-1]), (hidden,)
    out["head.norm.weight"] = out["head.norm.bias"] = (hidden,)
    out["head.fc2.weight"], out["head.fc2.bias"] = (num_classes, hidden), (num_classes,)
    return out
