"""Any classification model of timm as a backbone, so that it can be an arm of a study.

The model itself is `TimmBackbone.model`, unchanged; this class gives it the interface that tasks,
cost tables and analyses expect of a `Backbone`.
"""

from __future__ import annotations

from typing import Any

import timm
from jaxtyping import Float
from timm.layers import LayerNorm2d  # type: ignore[attr-defined]  # re-exported
from timm.models import group_parameters
from torch import Tensor, nn

from spanet_lightning.backbones.metaformer import Backbone
from spanet_lightning.errors import ConfigError, did_you_mean, invalid


class TimmBackbone(Backbone):
    """A classification model that timm knows, such as `convnext_tiny`, `caformer_s18`, `resnet50`.

    Args:
        name: timm's name of the model, with or without a tag of pretrained weights
            (`convnext_tiny.fb_in1k`). Names that download code or configurations
            (`hf-hub:`, `local-dir:`) are refused.
        num_classes: Classes of the classifier; 0 leaves it out.
        in_chans: Channels of the image.
        pretrained: Whether to start from timm's weights of that name or tag, which are downloaded.
        img_size: Side of the images in pixels; null is the model's own. Only models that are built
            for one size, such as ViT and Swin, make use of it.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Drop-path of the last block; null is the model's own.
        model_args: Further arguments of timm's model.

    Raises:
        ConfigError: If timm does not know the model, or the model refuses an argument, or its
            weights can't be downloaded.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        pretrained: bool = False,
        img_size: int | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        model_args: dict[str, Any] | None = None,
    ) -> None:
        nn.Module.__init__(self)  # the stages of `Backbone` are the model's own affair
        if not timm.is_model(name):
            near = did_you_mean(name, timm.list_models())
            raise invalid("backbone.name", name, "a model that timm knows", near)
        cfg = timm.get_pretrained_cfg(name)
        fixed = bool(cfg is not None and cfg.fixed_input_size)
        options = {
            "img_size": img_size if fixed else None,
            "drop_rate": drop_rate or None,
            "drop_path_rate": drop_path_rate,
            **(model_args or {}),
        }
        self.model: Any = _create(name, pretrained, num_classes, in_chans, options)
        self.name = name
        self.in_chans = in_chans
        self.num_classes = num_classes
        model: Any = self.model
        self.num_features = self.head_hidden_size = int(
            getattr(model, "head_hidden_size", model.num_features)
        )
        self.pretrained_cfg: dict[str, Any] = model.pretrained_cfg
        info = getattr(model, "feature_info", None) or []
        self.feature_info = [dict(level) for level in getattr(info, "info", info)]
        self.grad_checkpointing = False
        self.img_size = img_size or (int(self.pretrained_cfg["input_size"][-1]) if fixed else None)

    def forward(self, x: Float[Tensor, "b i x y"]) -> Float[Tensor, "b k"]:
        """Return the logits (B, classes) of images (B, in_chans, X, Y)."""
        logits: Tensor = self.model(x)
        return logits

    def forward_features(self, x: Float[Tensor, "b i x y"]) -> Tensor:
        """Return the features before the classifier's pooling, in the model's own layout."""
        features: Tensor = self.model.forward_features(x)
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of features, or the pooled features themselves."""
        pooled: Tensor = self.model.forward_head(x, pre_logits=pre_logits)
        return pooled

    def forward_intermediates(
        self,
        x: Float[Tensor, "b i x y"],
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the features of chosen levels of `feature_info`; see timm's method."""
        found: list[Tensor] | tuple[Tensor, list[Tensor]] = self.model.forward_intermediates(
            x,
            indices=indices,
            norm=norm,
            stop_early=stop_early,
            output_fmt=output_fmt,
            intermediates_only=intermediates_only,
        )
        return found

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what the features at `indices` do not need; see timm's method."""
        kept: list[int] = self.model.prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.num_classes = 0
        return kept

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        classifier: nn.Module = self.model.get_classifier()
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; 0 classes leave it out."""
        extra = {} if global_pool is None else {"global_pool": global_pool}
        self.model.reset_classifier(num_classes, **extra)
        self.num_classes = num_classes

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of storing their activations.

        Raises:
            ConfigError: If the model can't.
        """
        self.grad_checkpointing = enable
        try:
            self.model.set_grad_checkpointing(enable)
        except AssertionError:  # timm's way to say so
            accepts = f"false: {self.name} does not support it"
            raise invalid("compute.grad_checkpointing", enable, accepts) from None

    def group_matcher(self, coarse: bool = False) -> Any:
        """Return timm's grouping of parameters by depth, as a function of a parameter's name.

        Raises:
            ConfigError: If the model states none.
        """
        try:
            matcher = self.model.group_matcher(coarse=coarse)
        except (AttributeError, AssertionError):
            accepts = "another model, or optimizer.layer_decay=null: timm states no groups for it"
            raise invalid("backbone.name", self.name, accepts) from None
        order = group_parameters(self.model, matcher, reverse=True)
        return lambda name: order[name.removeprefix("model.")]

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that the model spares of weight decay beside norms and biases."""
        listed: set[str] = getattr(self.model, "no_weight_decay", set)()
        return {f"model.{name}" for name in listed}

    def output_norm(self, channels: int) -> nn.Module:
        """Return the norm of a feature level in a dense model.

        LayerNorm over channels, as ConvNeXt's and Swin's published detectors have it; none for
        models with batch norms, whose levels are normalised already.
        """
        batch_norms = any(isinstance(m, nn.BatchNorm2d) for m in self.model.modules())
        return nn.Identity() if batch_norms else LayerNorm2d(channels)


def _create(
    name: str, pretrained: bool, num_classes: int, in_chans: int, options: dict[str, Any]
) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **options
        )
    except TypeError as error:  # an argument that this model does not have
        given = {key: value for key, value in options.items() if value is not None}
        raise ConfigError(f"backbone: {name} does not take all of {given} ({error})") from None
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())
        if pretrained:
            accepts = f"false, or a machine that can download the weights of {name}"
            raise invalid("backbone.pretrained", pretrained, f"{accepts} ({reason})") from error
        raise ConfigError(f"backbone: {name}: {reason}") from error
    return model


def as_backbone(backbone: Backbone | str, num_classes: int | None = None) -> Backbone:
    """Return a backbone, which timm's name may stand for.

    Args:
        backbone: A backbone, or timm's name of a model: one of ours or any other.
        num_classes: Classes of the classifier of a model that is given by name; null is 1,000.

    Raises:
        ConfigError: If there is no such model.
    """
    if not isinstance(backbone, str):
        return backbone
    classes = 1000 if num_classes is None else num_classes
    known = timm.is_model(backbone)
    if known and timm.model_entrypoint(backbone).__module__.startswith(f"{__package__}."):
        ours: Backbone = timm.create_model(backbone, num_classes=classes)  # type: ignore[assignment]
        return ours
    return TimmBackbone(backbone, num_classes=classes)
