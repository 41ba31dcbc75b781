"""Register every row of a table of variants with timm.

timm looks models up by functions named after them. The functions differ in nothing but the row, so
they are made from the table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from torch import Tensor

from spanet_lightning.backbones.metaformer import Backbone
from spanet_lightning.backbones.official import accept_checkpoints
from spanet_lightning.errors import CheckpointError
from spanet_lightning.remote import download

StateFilter = Callable[[Mapping[str, Tensor], Backbone], dict[str, Tensor]]


def pretrained_cfg(url: str = "", **changes: Any) -> dict[str, Any]:
    """Return timm's metadata of a variant: input, normalisation, crop, and where weights are."""
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        **changes,
    }


def register(
    cls: type[Backbone],
    names: Mapping[str, str],
    cfgs: Mapping[str, dict[str, Any]],
    state_filter: StateFilter,
) -> None:
    """Register `cls` under each of `names`, in the module that defines it.

    Args:
        cls: Backbone whose first argument is a variant.
        names: timm's name → variant.
        cfgs: timm's name → `pretrained_cfg`.
        state_filter: Turns a downloaded state dict into ours.
    """
    module = sys.modules[cls.__module__]
    module.default_cfgs = generate_default_cfgs(  # type: ignore[attr-defined]
        {f"{name}.in1k" if cfg["url"] else name: cfg for name, cfg in cfgs.items()}
    )
    for name, variant in names.items():
        setattr(module, name, register_model(_entrypoint(cls, name, variant, state_filter)))


def _with_hash(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's overlay of a variant's metadata: what it would download is a local file.

    Raises:
        CheckpointError: If the address of its weights states no hash.
    """
    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
    cfg = kwargs.get("pretrained_cfg")
    if cfg is None or isinstance(cfg, str):
        cfg = get_pretrained_cfg(f"{name}.{cfg}" if cfg else name)
    known = {**(cfg if isinstance(cfg, dict) else vars(cfg) if cfg else {}), **overlay}
    url = known.get("url") or ""
    # What timm asks before it asks for an address.
    if url and not any(known.get(key) for key in ("state_dict", "file", "hf_hub_id")):
        if "#sha256=" not in url:
            raise CheckpointError(
                f"pretrained weights of {name}: got {url}, which states no hash; download it and "
                f"give the file, as model.weights=FILE or MODEL@FILE, or add #sha256=HASH to it"
            )
        overlay["file"] = str(download(url, f"pretrained weights of {name}"))
    return overlay


def _entrypoint(
    cls: type[Backbone], name: str, variant: str, state_filter: StateFilter
) -> Callable[..., Any]:
    def create(pretrained: bool = False, **kwargs: Any) -> Any:
        if pretrained:
            kwargs["pretrained_cfg_overlay"] = _with_hash(name, kwargs)
        model = build_model_with_cfg(
            partial(cls, variant),  # type: ignore[arg-type,call-arg]
            name,
            pretrained,
            pretrained_filter_fn=state_filter,
            # Features come through forward_intermediates: the stages are called as in training.
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            **kwargs,
        )
        accept_checkpoints(model)
        return model

    create.__name__ = create.__qualname__ = name
    create.__module__ = cls.__module__
    create.__doc__ = f"Build `{cls.__name__}({variant!r})`; see there for the arguments."
    return create
