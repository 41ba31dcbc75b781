"""If one of these fails, segmentation heads, their loss or inference are not the published ones."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spanet_lightning import SemanticFPN, SPANet, SPANetV2, UPerNet
from spanet_lightning.errors import ConfigError
from spanet_lightning.heads import DenseModel
from spanet_lightning.heads.inference import augmented, slide, windows
from spanet_lightning.heads.layers import SyncBatchNorm
from spanet_lightning.heads.segmentation import resize, segmentation_loss

HEADS = {
    "semantic_fpn": lambda **k: SemanticFPN(16, 16, **k),
    "upernet": lambda **k: UPerNet(16, auxiliary_width=8, **k),
}


def model(name: str, **options) -> DenseModel:
    torch.manual_seed(0)
    backbone = (
        SPANetV2("test", num_classes=0) if name == "upernet" else SPANet("test", num_classes=0)
    )
    return DenseModel(backbone, HEADS[name](**options), 3)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("size", [(32, 32), (75, 101), (97, 64), (33, 130)])
def test_any_size_gives_logits_at_stride_four(name: str, size: tuple[int, int]) -> None:
    dense = model(name).eval()
    features = dense.features(torch.randn(1, 3, *size))
    assert dense.head(features).shape == (1, 3, *features[0].shape[-2:])


@pytest.mark.parametrize("name", HEADS)
def test_a_few_steps_lower_the_loss_and_reach_every_parameter(name: str) -> None:
    dense = model(name).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    masks = (images[:, 0] > 0).long() + (images[:, 1] > 1).long()
    optimizer = torch.optim.AdamW(dense.parameters(), 2e-3)
    history = []
    for step in range(25):
        features = dense.features(images)
        loss = segmentation_loss(dense.head(features), masks)
        auxiliary = dense.head.auxiliary(features)
        assert (auxiliary is None) == (name == "semantic_fpn")
        if auxiliary is not None:
            assert auxiliary[1] == 0.4
            assert auxiliary[0].shape == (2, 3, 4, 4)
            loss = loss + auxiliary[1] * segmentation_loss(auxiliary[0], masks)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert [n for n, p in dense.named_parameters() if p.grad is None] == []
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.9 * history[0]


def test_loss_divides_by_all_pixels_or_by_those_with_a_class() -> None:
    logits = torch.randn(2, 3, 4, 5)
    masks = torch.randint(0, 3, (2, 8, 10))
    masks[:, :3] = 255
    full = F.interpolate(logits, (8, 10), mode="bilinear", align_corners=False).log_softmax(1)
    total, classed = 0.0, 0
    for b in range(2):
        for y in range(8):
            for x in range(10):
                if masks[b, y, x] != 255:
                    total -= full[b, masks[b, y, x], y, x].item()
                    classed += 1
    assert segmentation_loss(logits, masks).item() == pytest.approx(total / 160, rel=1e-5)
    found = segmentation_loss(logits, masks, over_all=False).item()
    assert found == pytest.approx(total / classed, rel=1e-5)
    nothing = segmentation_loss(logits, torch.full((2, 8, 10), 255), over_all=False)
    assert nothing.item() == 0


def test_the_branches_of_semantic_fpn_double_up_to_stride_four() -> None:
    layers = SemanticFPN(8, 8).build((4, 4, 4, 4), 2)
    assert [len(branch) for branch in layers.branches] == [1, 1, 2, 3]
    assert not any(unit.conv.bias is not None for branch in layers.branches for unit in branch)


def test_sync_batch_norm_works_in_one_process_on_a_cpu_as_batch_norm() -> None:
    plain, sync = nn.BatchNorm2d(4), SyncBatchNorm(4)
    x = torch.randn(3, 4, 5, 5)
    for _ in range(2):
        torch.testing.assert_close(sync(x), plain(x))
    plain.eval(), sync.eval()
    torch.testing.assert_close(sync(x), plain(x))
    torch.testing.assert_close(dict(sync.state_dict()), dict(plain.state_dict()))
    for norm, kind in (("sync", SyncBatchNorm), ("batch", nn.BatchNorm2d)):
        layers = SemanticFPN(8, 8, norm=norm).build((4, 4, 4, 4), 2)
        assert {
            type(m)
            for m in layers.modules()
            if "Norm2d" in type(m).__name__ or m.__class__ is SyncBatchNorm
        } == {kind}


class Counting(nn.Module):
    """A network whose answer depends on where in its window a pixel lies."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        where = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
        return torch.cat([x[:, :1] + where, x[:, 1:2] * where.sin()], dim=1)


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [((50, 70), 32, 21), ((32, 100), 32, 32), ((40, 40), 64, 43), ((65, 64), 32, 11)],
)
def test_sliding_agrees_with_a_literal_loop(size, window: int, stride: int) -> None:
    height, width = size
    images = torch.randn(1, 2, height, width)
    net = Counting()
    total, count = torch.zeros(1, 2, height, width), torch.zeros(height, width)
    rows = max(math.ceil((height - window) / stride), 0) + 1
    columns = max(math.ceil((width - window) / stride), 0) + 1
    for i in range(rows):
        for j in range(columns):
            bottom, right = min(i * stride + window, height), min(j * stride + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            total[:, :, top:bottom, left:right] += net(images[:, :, top:bottom, left:right])
            count[top:bottom, left:right] += 1
    torch.testing.assert_close(slide(net, images, window, stride), total / count)


def test_published_windows() -> None:
    assert list(windows(683, 512, 341)) == [(0, 512), (171, 683)]
    assert list(windows(2048, 512, 341))[-1] == (1536, 2048)
    assert list(windows(300, 512, 341)) == [(0, 300)]


def test_multi_scale_flip_is_the_mean_of_probabilities() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    x = torch.randn(1, 3, 40, 48)
    with torch.no_grad():
        found = augmented(conv, x, (20, 24), (1.0, 1.5), flip=True)
        parts = []
        for scaled in (x, resize(x, (60, 72))):
            parts.append(resize(conv(scaled), (20, 24)).softmax(1))
            mirrored = conv(scaled.flip(3)).flip(3)
            parts.append(resize(mirrored, (20, 24)).softmax(1))
    torch.testing.assert_close(found, torch.stack(parts).mean(0))
    torch.testing.assert_close(found.sum(1), torch.ones(1, 20, 24))


def test_upernet_needs_two_images_to_train() -> None:
    dense = model("upernet").train()
    with pytest.raises(ConfigError, match=r"batch_size: got 1, expected at least 2"):
        dense.head(dense.features(torch.randn(1, 3, 64, 64)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UPerNet(width=0), r"width: got 0, expected an integer of at least 1"),
        (lambda: UPerNet(auxiliary_weight=-1.0), r"auxiliary_weight: got -1.0, expected a number"),
        (lambda: SemanticFPN(dropout=1.0), r"dropout: got 1.0, expected a number in \[0, 1\)"),
        (lambda: SemanticFPN(norm="group"), r"norm: got 'group', expected one of 'batch', 'sync'"),
    ],
)
def test_bad_arguments_are_named(build, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_upernet_without_auxiliary_head() -> None:
    layers = UPerNet(8, auxiliary_weight=0).build((4, 4, 4, 4), 2)
    assert layers.auxiliary([]) is None
    assert not any(n.startswith("auxiliary") for n, _ in layers.named_parameters())
