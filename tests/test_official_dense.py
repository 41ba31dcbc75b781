"""If one of these fails, an official detector or segmentation model is read wrongly."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from spanet_lightning import (
    CascadeMaskRCNN,
    MaskRCNN,
    RetinaNet,
    SemanticFPN,
    SPANet,
    SPANetV2,
    UPerNet,
    load_official,
)
from spanet_lightning.errors import CheckpointError, ConfigError
from spanet_lightning.heads import DenseModel
from tests.parity import schema

DEPTHS, SIZES = (1, 1, 2, 1), (16, 8, 4, 2)
V1_DIMS, V2_DIMS = (24, 36, 48, 60), (16, 32, 64, 96)
W, HID, K = 16, 32, 3


def conv(name: str, out: int, inp: int, k: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, inp, k, k), **({f"{name}.bias": (out,)} if bias else {})}


def unit(name: str, out: int, inp: int, k: int) -> dict[str, tuple[int, ...]]:
    norms = {f"{name}.bn.{n}": (out,) for n in ("weight", "bias", "running_mean", "running_var")}
    return (
        conv(f"{name}.conv", out, inp, k, bias=False)
        | norms
        | {f"{name}.bn.num_batches_tracked": ()}
    )


def linear(name: str, out: int, inp: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, inp), f"{name}.bias": (out,)}


def fpn(dims: tuple[int, ...], extra: int = 0) -> dict[str, tuple[int, ...]]:
    out = {}
    for i, c in enumerate(dims):
        out |= conv(f"neck.lateral_convs.{i}.conv", W, c, 1) | conv(
            f"neck.fpn_convs.{i}.conv", W, W, 3
        )
    for i in range(extra):
        out |= conv(f"neck.fpn_convs.{len(dims) + i}.conv", W, W if i else dims[-1], 3)
    return out


def rpn() -> dict[str, tuple[int, ...]]:
    return (
        conv("rpn_head.rpn_conv", W, W, 3)
        | conv("rpn_head.rpn_cls", 3, W, 1)
        | conv("rpn_head.rpn_reg", 12, W, 1)
    )


def mask(name: str) -> dict[str, tuple[int, ...]]:
    out = {f"{name}.upsample.weight": (W, W, 2, 2), f"{name}.upsample.bias": (W,)}
    for i in range(4):
        out |= conv(f"{name}.convs.{i}.conv", W, W, 3)
    return out | conv(f"{name}.conv_logits", K, W, 1)


def retinanet(dims):
    out = fpn(dims[1:], 2)
    for i in range(4):
        out |= conv(f"bbox_head.cls_convs.{i}.conv", W, W, 3)
        out |= conv(f"bbox_head.reg_convs.{i}.conv", W, W, 3)
    return out | conv("bbox_head.retina_cls", 9 * K, W, 3) | conv("bbox_head.retina_reg", 36, W, 3)


def mask_rcnn(dims):
    box = "roi_head.bbox_head"
    out = fpn(dims) | rpn() | mask("roi_head.mask_head")
    out |= linear(f"{box}.shared_fcs.0", HID, W * 49) | linear(f"{box}.shared_fcs.1", HID, HID)
    return out | linear(f"{box}.fc_cls", K + 1, HID) | linear(f"{box}.fc_reg", 4 * K, HID)


def cascade(dims):
    out = fpn(dims) | rpn()
    for k in range(3):
        box = f"roi_head.bbox_head.{k}"
        for i in range(4):
            out |= unit(f"{box}.shared_convs.{i}", W, W, 3)
        out |= linear(f"{box}.shared_fcs.0", HID, W * 49) | mask(f"roi_head.mask_head.{k}")
        out |= linear(f"{box}.fc_cls", K + 1, HID) | linear(f"{box}.fc_reg", 4 * K, HID)
    return out


def semantic_fpn(dims):
    out = fpn(dims) | conv("decode_head.conv_seg", K, HID, 1)
    for level, places in enumerate(((0,), (0,), (0, 2), (0, 2, 4))):
        for j in places:
            out |= unit(f"decode_head.scale_heads.{level}.{j}", HID, HID if j else W, 3)
    return out


def upernet(dims):
    out = conv("decode_head.conv_seg", K, W, 1) | conv("auxiliary_head.conv_seg", K, 8, 1)
    for i in range(4):
        out |= unit(f"decode_head.psp_modules.{i}.1", W, dims[3], 1)
    for i in range(3):
        out |= unit(f"decode_head.lateral_convs.{i}", W, dims[i], 1)
        out |= unit(f"decode_head.fpn_convs.{i}", W, W, 3)
    out |= unit("decode_head.bottleneck", W, dims[3] + 4 * W, 3)
    return (
        out
        | unit("decode_head.fpn_bottleneck", W, 4 * W, 3)
        | unit("auxiliary_head.convs.0", 8, dims[2], 3)
    )


TWO = {"out_channels": W, "fc_dim": HID}
HEADS = {
    "retinanet": (lambda: RetinaNet(out_channels=W), retinanet),
    "mask_rcnn": (lambda: MaskRCNN(**TWO), mask_rcnn),
    "cascade": (lambda: CascadeMaskRCNN(**TWO), cascade),
    "semantic_fpn": (lambda: SemanticFPN(W, HID), semantic_fpn),
    "upernet": (lambda: UPerNet(W, auxiliary_channels=8), upernet),
}


def official(generation: int, head) -> dict[str, torch.Tensor]:
    """Return a state dict in the names of mmdetection and mmsegmentation, drawn at random."""
    if generation == 1:
        dims = V1_DIMS
        backbone = schema.v1(DEPTHS, dims, 1000, SIZES)
        shapes = {
            k: v for k, v in backbone.items() if not re.search(r"\.filter$|^norm\.|^head\.", k)
        }
        shapes |= {f"norm{2 * i}.{p}": (c,) for i, c in enumerate(dims) for p in ("weight", "bias")}
    else:
        dims = V2_DIMS
        # With the classifier that the authors' dense models keep and never call.
        shapes = dict(schema.v2(DEPTHS, dims, 1000, SIZES, ("spam",) * 4, concatenated=False))
        shapes |= {f"norm{i}.weight": (c,) for i, c in enumerate(dims)}
    shapes = {f"backbone.{k}": v for k, v in shapes.items()} | head(dims)
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(v, generator=generator) for k, v in shapes.items()}


def model(generation: int, head) -> DenseModel:
    if generation == 1:
        return DenseModel(SPANet(depths=DEPTHS, dims=V1_DIMS, num_classes=0), head, K)
    backbone = SPANetV2(depths=DEPTHS, dims=V2_DIMS, num_classes=0, img_size=64)
    return DenseModel(backbone, head, K)


@pytest.mark.parametrize("generation", [1, 2])
@pytest.mark.parametrize("name", HEADS)
def test_every_tensor_of_every_head_finds_its_place(name: str, generation: int) -> None:
    config, shapes = HEADS[name]
    state = official(generation, shapes)
    dense = model(generation, config())
    report = load_official(dense, {"state_dict": state, "meta": {}})
    classifier = {k for k in state if re.match(r"backbone\.(norm|head)\.", k)}
    assert set(report.ignored) == classifier
    assert set(report.used) == set(state) - classifier
    assert not report.missing
    before = sum(
        v.double().sum() for k, v in state.items() if k not in classifier and "num_b" not in k
    )
    after = sum(v.double().sum() for k, v in dense.state_dict().items() if "num_b" not in k)
    assert after == pytest.approx(float(before), rel=1e-6)


def test_the_background_moves_from_last_to_first() -> None:
    state = official(2, mask_rcnn)
    dense = model(2, MaskRCNN(**TWO))
    load_official(dense, state)
    theirs = state["roi_head.bbox_head.fc_cls.weight"]
    ours = dense.head.box_head.cls_logits.weight
    assert torch.equal(ours[0], theirs[K])
    assert torch.equal(ours[1:], theirs[:K])
    # Deltas have no background: their order stays.
    assert torch.equal(dense.head.box_head.bbox_pred.bias, state["roi_head.bbox_head.fc_reg.bias"])


def test_our_own_checkpoint_comes_back_as_it_was() -> None:
    first, second = model(2, MaskRCNN(**TWO)), model(2, MaskRCNN(**TWO))
    load_official(second, {f"model.{k}": v for k, v in first.state_dict().items()})
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_a_classifier_gives_its_backbone() -> None:
    shapes = schema.v2(DEPTHS, V2_DIMS, 1000, SIZES, ("spam",) * 4, concatenated=False)
    state = {k: torch.randn(v) for k, v in shapes.items()}
    dense = model(2, RetinaNet(out_channels=W))
    before = dense.head.cls_logits.weight.clone()
    report = load_official(dense, state)
    assert torch.equal(dense.backbone.stem.conv.weight, state["downsample_layers.0.conv.weight"])
    assert torch.equal(dense.head.cls_logits.weight, before)
    assert {key.split(".")[0] for key in report.missing} == {"head", "output_norms"}


def test_other_classes_leave_the_last_layers_out() -> None:
    state = official(2, mask_rcnn)
    dense = DenseModel(
        SPANetV2(depths=DEPTHS, dims=V2_DIMS, num_classes=0, img_size=64), MaskRCNN(**TWO), 7
    )
    report = load_official(dense, state)
    other = {k for k, why in report.ignored.items() if "another number of classes" in why}
    assert {k.rsplit(".", 2)[1] for k in other} == {"fc_cls", "fc_reg", "conv_logits"}


def test_checkpoints_that_do_not_fit_are_refused_by_name() -> None:
    state = official(2, mask_rcnn)
    with pytest.raises(
        CheckpointError, match=r"'neck.lateral_convs.3\S+' .*no place in the RetinaNet"
    ):
        load_official(model(2, RetinaNet(out_channels=W)), state)
    with pytest.raises(
        CheckpointError, match=r"'neck.lateral_convs.0.conv.weight' .*\(16, .*does not fit"
    ):
        load_official(model(2, MaskRCNN(out_channels=24, fc_dim=HID)), state)
    short = {k: v for k, v in state.items() if "rpn_reg" not in k}
    with pytest.raises(CheckpointError, match=r"lacks a tensor for the model's head.rpn.bbox_pred"):
        load_official(model(2, MaskRCNN(**TWO)), short)
    with pytest.raises(ConfigError, match=r"model: got 'Linear', expected a Backbone or"):
        load_official(torch.nn.Linear(2, 2), state)


def test_a_refused_checkpoint_changes_nothing(tmp_path: Path) -> None:
    state = official(2, mask_rcnn)
    del state["roi_head.bbox_head.fc_reg.bias"]
    dense = model(2, MaskRCNN(**TWO))
    before = {k: v.clone() for k, v in dense.state_dict().items()}
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match=r"short.pth: lacks a tensor"):
        load_official(dense, tmp_path / "short.pth")
    assert all(torch.equal(v, before[k]) for k, v in dense.state_dict().items())
